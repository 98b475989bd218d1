"""Claims that are made at every boot: the power is cut while they are made or released, and machines are rebuilt."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyiommufd.host.persistent import claim_file
from pyiommufd.testing import Edu, Guest, GuestDevice, GuestError, Nvme, RawDevice, RootPort, SharedGroup, VirtioRng
from pyiommufd.testing.guest.machine import Topology
from tests.sweeps import sample

pytestmark = pytest.mark.boots

PROGRAM = ["python", "-m", "tests.boot.persistence_program"]
GROUP = SharedGroup(Edu(), Edu(), VirtioRng())
NAMES = ("0000:02:01.0", "0000:02:02.0", "0000:02:03.0")
HOST = {NAMES[0]: None, NAMES[1]: None, NAMES[2]: "virtio-pci"}


@dataclass(frozen=True)
class At:
    """A device in a slot of the root bus."""

    slot: int
    device: GuestDevice

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        assert not place
        return self.device.arguments(topology, f",bus=pcie.0,addr={self.slot:#x}")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty disk with a journal: what is not synced is lost with the guest."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    mkfs = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if mkfs is None:
        pytest.skip("mkfs.ext4 is not here (package e2fsprogs)")
    subprocess.run([mkfs, "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", path], check=True)
    return path


def machine(disk: Path, devices: Sequence[GuestDevice]) -> Guest:
    """A guest with that disk, in a slot that is in nobody's way."""
    arguments = ["-drive", f"file={disk},if=none,id=etc,format=raw", "-device", "virtio-blk-pci,drive=etc,addr=0x1b"]
    return Guest(devices=devices, qemu_arguments=arguments, memory=512)


def run(guest: Guest, *arguments: str) -> Any:
    done = guest.run([*PROGRAM, *arguments], timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return json.loads(done.stdout.splitlines()[-1])


def cut(guest: Guest, *arguments: str) -> str:
    """Run the program up to its point, and cut the power. Returns what it was at."""
    output = bytearray()
    there = threading.Event()

    def read(data: bytes) -> None:
        output.extend(data)
        if b"\nat " in output and output.endswith(b"\n"):
            there.set()

    def wait() -> None:
        with contextlib.suppress(GuestError):  # it dies, as it is meant to
            guest.run([*PROGRAM, *arguments], stdout=read, stderr=output.extend)
        there.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert there.wait(300)
    assert b"\nat " in output, output.decode()
    guest.qmp("quit")
    thread.join()
    return output.decode().partition("\nat ")[2].strip()


def outcome(after: dict[str, Any]) -> str:
    """What a boot has made of the claim: ``applied`` or ``absent``, each as a whole."""
    drivers = {name: after["drivers"][name] for name in NAMES}
    assert after["status"] == 0, after
    assert after["others"] == [], after
    if after["files"]:
        assert drivers == dict.fromkeys(NAMES, "vfio-pci"), after
        assert (list(after["files"]), after["kept"], after["unit"]) == ([f"{NAMES[0]}.toml"], 1, True), after
        return "applied"
    assert drivers == HOST, after
    assert (after["kept"], after["unit"]) == (0, False), after
    return "absent"


def chosen(points: list[str]) -> list[int]:
    """The points to cut at: every one at which something on the disk may differ, the ends, and one in the middle.

    The rest is of /run and of the kernel's memory, which no boot sees: `test_power_cut` has those.
    """
    ends = (0, len(points) - 1)
    return [number for number, what in enumerate(points) if number in ends or "/etc/" in what or ": unbind" in what]


def taken(action: str, points: list[str], turn: int) -> list[int]:
    """Those of them that this run takes: of a sample one of each outcome, so that each is there to be asserted.

    Args:
        action: What is cut short.
        points: All there are.
        turn: The number of the decisive one, up to which the next boot finds the old state.
    """
    parts: dict[str, list[int]] = defaultdict(list)
    for number in chosen(points):
        parts["before" if number <= turn else "either" if is_either(points[number]) else "after"].append(number)
    return sorted(
        number
        for part, numbers in parts.items()
        for number in sample(f"boot.persistence[{action}, {part}]", numbers, 1)
    )


def is_either(what: str) -> bool:
    """Whether the name is there, and may not be on disk yet: both outcomes are right."""
    return what.startswith("sync ")


@pytest.mark.parametrize("action", ["claim", "release"])
def test_power_cut(disk: Path, action: str) -> None:
    """At each point of claim --persist, or of its release: the next boot finds all of the claim, or nothing."""
    before, after = ("absent", "applied") if action == "claim" else ("applied", "absent")
    with machine(disk, [GROUP]) as guest:
        points = run(guest, action, NAMES[0])
    decisive = "rename to " if action == "claim" else f"{claim_file.FOLDER / NAMES[0]}.toml: remove"
    (turn,) = [number for number, what in enumerate(points) if what.startswith(decisive)]
    table: list[tuple[str, str]] = []
    for point in (*taken(action, points, turn), None):
        with machine(disk, [GROUP]) as guest:
            if table:
                table[-1] = (table[-1][0], outcome(run(guest, "boot")))
            if point is not None:
                table.append((cut(guest, action, NAMES[0], str(point)), ""))
                assert table[-1][0] == points[point]
    print(f"\npower cut before … of `{action}`; the next boot")
    for what, found in table:
        print(f"  {what:70} {found}")
    for what, found in table:
        if not is_either(what):
            assert found == (before if points.index(what) <= turn else after), what
    assert {found for _, found in table} == {before, after}


def test_rebuilt_machine(disk: Path) -> None:
    """Buses have other numbers, cards are in other slots: the same devices are claimed, or nothing of that claim is."""
    nvme, network = Nvme(serial="pyiommufd-8"), RawDevice("e1000e,mac=52:54:00:00:00:01")
    other = RawDevice("e1000e,mac=52:54:00:00:00:02")
    first = [At(4, GROUP), At(5, RootPort(nvme)), At(6, RootPort(network)), At(7, RootPort(Nvme(serial="another")))]
    claims = [NAMES[0], "0000:03:00.0", "0000:04:00.0"]
    with machine(disk, first) as guest:
        assert run(guest, "boot")["files"] == {}
        for name in claims:
            done = guest.run(["python", "-m", "tests.trusted", "claim", "--persist", name])
            assert done.returncode == 0, done.stderr.decode()
        files = run(guest, "boot")["files"]
    assert [f"{name}.toml" for name in claims] == sorted(files)
    assert 'serial = "nvme pyiommufd-8"' in files["0000:03:00.0.toml"]
    assert 'serial = "dsn 52-54-00-ff-ff-00-00-01"' in files["0000:04:00.0.toml"]
    # A card more in a slot before the others, and those with serial numbers have changed places.
    second = [
        At(3, RootPort(other)),
        At(4, GROUP),
        At(5, RootPort(Nvme(serial="another"))),
        At(6, RootPort(nvme)),
        At(7, RootPort(network)),
    ]
    with machine(disk, second) as guest:
        found = run(guest, "boot")
    assert found["status"] == 0, found
    drivers = found["drivers"]
    assert {name for name, driver in drivers.items() if driver == "vfio-pci"} == {
        *("0000:03:01.0", "0000:03:02.0", "0000:03:03.0"),
        "0000:05:00.0",
        "0000:06:00.0",
    }
    assert (drivers["0000:01:00.0"], drivers["0000:04:00.0"]) == ("e1000e", "nvme")
    # The host's own card is where the claimed one was, and of its kind; one of the edu devices has gone elsewhere.
    third = [At(3, Edu()), At(4, SharedGroup(Edu(), VirtioRng())), At(5, RootPort(Nvme(serial="another")))]
    with machine(disk, third) as guest:
        found = run(guest, "boot")
    assert found["status"] == 1
    assert "vfio-pci" not in found["drivers"].values()
    assert found["said"].count("nothing is done") == 3, found["said"]
    assert found["said"].count("cannot be told for certain") == 1, found["said"]
    assert len(found["files"]) == 3
