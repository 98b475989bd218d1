"""Outputs that take nothing, and a machine without libudev: a line and an exit status, and nothing half done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd import HostDevice, find_device
from pyiommufd.host.claims import journal

COMMAND = [sys.executable, "-m", "pyiommufd.cli"]
SAID = "pyiommufd: the standard output cannot be written to: No space left on device\n"


@pytest.mark.long
def test_full_disk(first: HostDevice, peer: HostDevice) -> None:
    commands = [
        [name, *arguments, *json]
        for name, *arguments in (
            ["list"],
            ["show", first.name],
            ["groups"],
            ["topology"],
            ["caps"],
            ["plan", first.name],
        )
        for json in ([], ["--json"])
    ]
    commands += [["claim", "--dry-run", first.name], ["run", "--print", first.name], ["holders", first.name, "--json"]]
    with open("/dev/full", "w") as full:
        for arguments in commands:
            done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            if arguments[0] == "run":
                assert (done.returncode, done.stderr.count("\n")) == (125, 1), done
                assert "No space left on device" in done.stderr
            else:
                assert (done.returncode, done.stderr) == (3, SAID), arguments


def test_claim_whose_steps_cannot_be_printed(first: HostDevice, peer: HostDevice) -> None:
    before = first.refreshed().driver, peer.refreshed().driver
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "claim", first.name], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == (
            "pyiommufd claim: the claim failed and was rolled back: [Errno 28] No space left on device: "
            "'the standard output'\n"
        )
        assert (first.refreshed().driver, peer.refreshed().driver) == before
        assert journal.records() == []
        subprocess.run([*COMMAND, "claim", first.name], check=True)
        # The release goes on.
        done = subprocess.run(
            [*COMMAND, "release", first.name], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    assert (first.refreshed().driver, peer.refreshed().driver) == before
    assert journal.records() == []


@pytest.mark.long
def test_library_that_cannot_be_loaded(first: HostDevice) -> None:
    """ldconfig's cache names it, and what is there is no library."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    paths = {line.rpartition("=> ")[2] for line in listed.splitlines() if "libudev.so" in line}
    empty = "; ".join(f"mount --bind /dev/null {Path(path).resolve()}" for path in sorted(paths))
    for arguments in ("list", "watch", "topology --json"):
        script = f"{empty}; exec {sys.executable} -m pyiommufd.cli {arguments}"
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done
        assert "libudev cannot be loaded" in done.stderr
    assert find_device(first.name) == first
