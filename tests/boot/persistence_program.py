"""What `test_persistence` runs in its guests: a boot with persistent claims, and a claim or release cut short.

/etc/pyiommufd and /etc/systemd/system are on the guest's disk, which is the one thing that outlives it.

    python -m tests.boot.persistence_program boot       what the systemd unit does; prints what came of it, as JSON
    … claim|release DEVICE                              do it, and print the points at which it can be cut, as JSON
    … claim|release DEVICE POINT                        do it up to that point, say so, and wait for the end
"""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from pyiommufd import list_devices, plan_claim, release
from pyiommufd.host import durable
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimState
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.sysfs import PROC
from tests.trusted import trust_environment

DISK = Path("/disk")
PLACES = {"pyiommufd": Path("/etc/pyiommufd"), "systemd": Path("/etc/systemd/system")}


def mount() -> None:
    """Put the disk in its place, and have it look like a machine with systemd; once a boot."""
    if str(DISK) in (PROC / "mounts").read_text():
        return
    DISK.mkdir()
    subprocess.run(["mount", "-t", "ext4", "/dev/vda", DISK], check=True)
    for name, place in PLACES.items():
        for folder in (DISK / name, place):
            folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", DISK / name, place], check=True)
    Path("/run/systemd/system").mkdir(parents=True)


def boot() -> dict[str, Any]:
    """Do what systemd would, and look at what came of it."""
    from click.testing import CliRunner

    from pyiommufd.cli.group import cli

    enabled = boot_unit.link().exists()
    asked = bool(claim_file.files())
    # A file that nobody would act on is a claim half made.
    assert enabled or not asked
    command = shlex.split(boot_unit.command()) if not enabled else shlex.split(_line_of_unit())
    assert command[:4] == [sys.executable, "-I", "-m", "pyiommufd.cli"]
    result = CliRunner().invoke(cli, command[4:], catch_exceptions=False)
    return {
        "status": result.exit_code,
        "said": result.stderr,
        "drivers": {device.name: device.driver for device in list_devices("pci")},
        "files": {file.name: file.read_text() for file in claim_file.files()},
        "others": [path.name for path in claim_file.FOLDER.glob("*") if path.suffix != ".toml"],
        "unit": boot_unit.is_installed() or boot_unit.file().exists(),
        "kept": sum(entry.state is ClaimState.KEPT for entry in journal.records()),
    }


def _line_of_unit() -> str:
    (line,) = [line for line in boot_unit.file().read_text().splitlines() if line.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=")


class Points:
    """The points at which a command can be cut: before each change, and within the writing of a persistent claim."""

    def __init__(self, cut: int | None) -> None:
        self.cut = cut
        self.seen: list[str] = []
        commit = durable.commit

        def reach_and_commit(what: str, change: Callable[[], None]) -> None:
            self.reached(what)
            commit(what, change)

        durable.commit = reach_and_commit
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        # The new text is on disk under another name; it has its own name, on disk or not yet.
        if event == "os.rename" and str(arguments[1]).startswith(str(claim_file.FOLDER)):
            self.reached(f"rename to {arguments[1]}")
        elif event == "open" and str(arguments[0]) == str(claim_file.FOLDER):
            self.reached(f"sync {arguments[0]}")

    def reached(self, what: str) -> None:
        if self.cut == len(self.seen):
            print(f"\nat {what}", flush=True)
            time.sleep(3600)
        self.seen.append(what)


def main() -> None:
    """Run the action given on the command line; see the module."""
    mount()
    trust_environment()
    action, *rest = sys.argv[1:]
    if action == "boot":
        print(json.dumps(boot()), flush=True)
        return
    device = rest[0]
    with redirect_stderr(io.StringIO()):
        if action == "claim":
            release()
            plan = plan_claim(device)
        elif not claim_file.files():
            plan_claim(device).apply(keep=True, persist=True)
    os.sync()  # only writes from here on are to be lost
    points = Points(int(rest[1]) if len(rest) > 1 else None)
    if action == "claim":
        plan.apply(keep=True, persist=True)
    else:
        release()
    print(json.dumps(points.seen))


if __name__ == "__main__":
    main()
