"""Each access to a window is one access on the bus, of its width: counted by QEMU, which the guest cannot see into."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyiommufd.testing import Edu, Guest, GuestDevice, Nvme
from pyiommufd.testing.machine import RawDevice
from pyiommufd.testing.register_trace import RegisterAccess

pytestmark = pytest.mark.boots

ACCESS = """
import json, sys
from pyiommufd import IOMMUFD, find_device, plan_claim

with plan_claim(find_device(sys.argv[1])).apply() as claim, IOMMUFD() as iommufd:
    device = iommufd.bind(claim.devices[0])
    region = device.region(int(sys.argv[2]))
    with region.map() as window:
        for kind, width, offset, value in json.loads(sys.argv[3]):
            if kind == "read":
                getattr(window, f"read{width}")(offset)
            else:
                getattr(window, f"write{width}")(offset, value)
"""

Wanted = list[tuple[str, int, int, int]]
"""Accesses: read or write, the width in bits, the offset in bytes, and the value (of a read: not said)."""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    devices: list[GuestDevice] = [Edu(), RawDevice("pci-testdev"), Nvme()]
    with Guest(devices=devices, trace=True) as guest:
        yield guest


def seen(guest: Guest, device: str, bar: int, region: str, wanted: Wanted) -> list[RegisterAccess]:
    """What QEMU saw of the region while these accesses were made."""
    before = len(guest.register_accesses(region))
    done = guest.run(["python", "-c", ACCESS, device, str(bar), json.dumps(wanted)], timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return guest.register_accesses(region)[before:]


def shape(accesses: list[RegisterAccess]) -> list[tuple[str, int, int | None]]:
    return [(access.kind, 8 * access.size, access.offset) for access in accesses]


def check(guest: Guest, device: str, bar: int, region: str, wanted: Wanted) -> None:
    """As many accesses as were made, of those widths, at those offsets, in that order, with those values."""
    found = seen(guest, device, bar, region, wanted)
    # The region need not be mapped any more when QEMU is asked where it is: the low bits of the address say it too.
    assert [(one.kind, 8 * one.size, one.address & 0xFFF) for one in found] == [
        (kind, width, offset & 0xFFF) for kind, width, offset, _ in wanted
    ]
    assert [one.value for one in found if one.kind == "write"] == [
        value for kind, _, _, value in wanted if kind == "write"
    ]


def test_edu_by_4_and_8_bytes(guest: Guest) -> None:
    wanted: Wanted = []
    for turn in range(50):
        wanted.append(("read", 32, 0x00, 0))
        wanted.append(("write", 32, 0x04, 0x1234_5678 ^ turn))
        wanted.append(("read", 32, 0x04, 0))
        wanted.append(("write", 64, 0x80, 0x0123_4567_89AB_CDEF ^ turn))
        wanted.append(("read", 64, 0x80, 0))
        wanted.append(("write", 64, 0x88, (1 << 64) - 1 - turn))
        wanted.append(("read", 64, 0x88, 0))
    check(guest, "1234:11e8", 0, "edu-mmio", wanted)


def test_single_bytes(guest: Guest) -> None:
    """pci-testdev takes one byte at a time: a wider access would be seen as several."""
    wanted: Wanted = []
    for turn in range(50):
        wanted.append(("read", 8, 16 + turn % 16, 0))
        wanted.append(("write", 8, 0, turn % 2))
    check(guest, "1b36:0005", 0, "pci-testdev-mmio", wanted)


def test_two_bytes(guest: Guest) -> None:
    """nvme takes 2, 4 and 8 bytes; what is written goes to reserved registers."""
    wanted: Wanted = []
    for turn in range(50):
        wanted.append(("read", 16, 0x08 + 2 * (turn % 2), 0))
        wanted.append(("read", 32, 0x08, 0))
        wanted.append(("read", 64, 0x00, 0))
        wanted.append(("write", 16, 0x100 + 2 * turn, 0xA500 + turn))
        wanted.append(("write", 32, 0x200 + 4 * turn, 0xA5A5_0000 + turn))
    check(guest, "1b36:0010", 0, "nvme", wanted)


def test_mapping_and_unmapping_touch_no_register(guest: Guest) -> None:
    assert seen(guest, "1234:11e8", 0, "edu-mmio", []) == []


def test_refused_accesses_reach_nothing(guest: Guest) -> None:
    """Out of the window, misaligned, too large a value: refused before the bus."""
    program = """
import sys
from pyiommufd import IOMMUFD, find_device, plan_claim

with plan_claim(find_device(sys.argv[1])).apply() as claim, IOMMUFD() as iommufd:
    with iommufd.bind(claim.devices[0]).region(0).map() as window:
        refused = 0
        for width in (8, 16, 32, 64):
            read, write = getattr(window, f"read{width}"), getattr(window, f"write{width}")
            calls = [lambda: read(1 << 20), lambda: read(-1), lambda: write(0, 1 << width), lambda: write(0, -1)]
            if width > 8:
                calls += [lambda: read(1), lambda: write(1, 0)]
            for call in calls:
                try:
                    call()
                except ValueError:
                    refused += 1
        assert refused == 22, refused
"""
    before = len(guest.register_accesses("edu-mmio"))
    done = guest.run(["python", "-c", program, "1234:11e8"], timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert guest.register_accesses("edu-mmio")[before:] == []
