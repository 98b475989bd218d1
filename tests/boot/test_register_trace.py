"""Each access to a window is one access on the bus, of its width: counted by QEMU, which the guest cannot see into."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyiommufd.testing import Edu, Guest, GuestDevice, Nvme
from pyiommufd.testing.guest.machine import RawDevice
from pyiommufd.testing.guest.register_trace import RegisterAccess
from tests.patience import patience

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
    done = guest.run(["python", "-c", ACCESS, device, str(bar), json.dumps(wanted)], timeout=patience())
    assert done.returncode == 0, done.stderr.decode()
    return guest.register_accesses(region)[before:]


def shapes(found: list[RegisterAccess]) -> list[tuple[str, int, int]]:
    """Kind, width in bits and offset; the region need not be mapped any more where QEMU says where it is."""
    return [(one.kind, 8 * one.size, one.address & 0xFFF) for one in found]


def check(guest: Guest, device: str, region: str, wanted: Wanted, *, driver: bool = False) -> None:
    """As many accesses as were made, of those widths, at those offsets, in that order, with those values.

    A host driver makes its own when it lets the device go and gets it back: before the first and after the last.
    """
    found = seen(guest, device, 0, region, wanted)
    expected = [(kind, width, offset & 0xFFF) for kind, width, offset, _ in wanted]
    if driver:
        starts = [at for at in range(len(found)) if shapes(found[at : at + len(wanted)]) == expected]
        assert len(starts) == 1, shapes(found)
        found = found[starts[0] : starts[0] + len(wanted)]
    assert shapes(found) == expected
    assert [one.value for one in found if one.kind == "write"] == [
        value for kind, _, _, value in wanted if kind == "write"
    ]


def test_edu_by_4_and_8_bytes(guest: Guest) -> None:
    wanted: Wanted = []
    for turn in range(20):
        wanted.append(("read", 32, 0x00, 0))
        wanted.append(("write", 32, 0x04, 0x1234_5678 ^ turn))
        wanted.append(("read", 32, 0x04, 0))
        wanted.append(("write", 64, 0x80, 0x0123_4567_89AB_CDEF ^ turn))
        wanted.append(("read", 64, 0x80, 0))
        wanted.append(("write", 64, 0x88, (1 << 64) - 1 - turn))
        wanted.append(("read", 64, 0x88, 0))
    check(guest, "1234:11e8", "edu-mmio", wanted)


def test_single_bytes(guest: Guest) -> None:
    """pci-testdev takes one byte at a time: a wider access would be seen as several."""
    wanted: Wanted = []
    for turn in range(20):
        wanted.append(("read", 8, 16 + turn % 16, 0))
        wanted.append(("write", 8, 0, turn % 2))
    check(guest, "1b36:0005", "pci-testdev-mmio", wanted)


def test_two_bytes(guest: Guest) -> None:
    """nvme takes 2, 4 and 8 bytes; what is written goes to reserved registers."""
    wanted: Wanted = []
    for turn in range(20):
        wanted.append(("read", 16, 0x08 + 2 * (turn % 2), 0))
        wanted.append(("read", 32, 0x08, 0))
        wanted.append(("read", 64, 0x00, 0))
        wanted.append(("write", 16, 0x100 + 2 * turn, 0xA500 + turn))
        wanted.append(("write", 32, 0x200 + 4 * turn, 0xA5A5_0000 + turn))
    check(guest, "1b36:0010", "nvme", wanted, driver=True)


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
    done = guest.run(["python", "-c", program, "1234:11e8"], timeout=patience())
    assert done.returncode == 0, done.stderr.decode()
    assert guest.register_accesses("edu-mmio")[before:] == []
