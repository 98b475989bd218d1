"""Names that somebody without rights chooses, and what root's terminal gets of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import HostDevice, list_devices
from tests.escapes import CONTROL_TEXT, invisible
from tests.guest.uses.disks import node_of
from tests.guest.uses.types import Runner
from tests.patience import until

POINT = CONTROL_TEXT.encode(errors="surrogateescape")
NAME = b"e\x1b]0;o\x07\x9b1m\xff"
COMM = b"\x1b]0;x\x07\n\x9b\xff"

ELSEWHERE = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0
point = os.fsencode(sys.argv[2]) + b"/" + {POINT!r}
os.makedirs(point, exist_ok=True)
assert libc.mount(os.fsencode(sys.argv[1]), point, b"ext4", 0, None) == 0, os.strerror(ctypes.get_errno())
libc.prctl(15, {COMM!r}, 0, 0, 0)
print("there", flush=True)
sys.stdin.read()
"""


def outputs(*commands: list[str]) -> list[bytes]:
    """What the commands print, as a process of its own each, standard error and output together."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pyiommufd.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands
    ]
    return [process.communicate()[0] for process in started]


def check(device: HostDevice, shown: str, *more: list[str], everywhere: bool = False) -> None:
    """The commands that tell of a device, or all; what plan and show print has that in it."""
    name = device.name
    others = [["holders", name], ["list"], ["topology"], ["claim", "--dry-run", name]]
    texts = outputs(["plan", name], ["show", name], *(others if everywhere else ()), *more)
    for text in texts:
        assert invisible(text) == "", text
        assert b"Traceback" not in text, text
        assert not any(line.startswith("forged") for line in text.decode().splitlines()), text
    for text in texts[:2]:
        assert shown in text.decode(), text
    others = [["list", "--json"], ["holders", name, "--json"], ["show", name, "--json"]]
    for text in outputs(["plan", name, "--json"], *(others if everywhere else ())):
        assert invisible(text) == "", text
        json.loads(text)


@pytest.fixture
def mounted_elsewhere(disk: HostDevice, run: Runner, tmp_path: Path) -> Iterator[None]:
    """The disk's filesystem mounted in a mount namespace, by a process of a name of its own choice."""
    node = until(lambda: node_of(disk))
    assert node is not None
    run("mkfs.ext4", "-q", node)
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, str(node), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        yield
        assert other.stdin is not None
        other.stdin.close()


@pytest.mark.usefixtures("mounted_elsewhere")
def test_mount_point_and_command(disk: HostDevice) -> None:
    forced = ["--force", "mounted", "--force", "held"]
    check(
        disk,
        r"x\x1b]0;owned\x07",
        ["claim", "--dry-run", *forced, disk.name],
        ["plan", *forced, disk.name],
        ["plan", *forced, disk.name, "--json"],
        everywhere=True,
    )


def test_name_of_an_interface(run: Runner) -> None:
    card = next(one for one in list_devices("pci") if one.driver == "e1000e")
    (before,) = os.listdir(card.sys_path / "net")  # noqa: PTH208
    name = os.fsdecode(NAME)
    run("ip", "link", "set", before, "down")
    run("ip", "link", "set", before, "name", name)
    try:
        run("ip", "address", "add", "192.0.2.9/24", "dev", name)
        run("ip", "link", "set", name, "up")
        check(card, r"e\x1b]0;o\x07")
    finally:
        run("ip", "address", "flush", "dev", name)
        run("ip", "link", "set", name, "down")
        run("ip", "link", "set", name, "name", before)


def test_holder_with_control_characters_in_its_name(disk: HostDevice) -> None:
    node = until(lambda: node_of(disk))
    assert node is not None
    code = (
        "import ctypes, sys\nctypes.CDLL(None).prctl(15, {!r}, 0, 0, 0)\n"
        "file = open(sys.argv[1], 'rb')\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code.format(COMM), str(node)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        check(disk, r"\x1b]0;x\x07\x0a", ["claim", "--dry-run", "--force", "held", disk.name])
        assert other.stdin is not None
        other.stdin.close()
