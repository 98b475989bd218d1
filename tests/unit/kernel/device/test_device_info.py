"""What a device says of itself: the capability chains, decoded, and the parts of a region that can be mapped."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiommufd.kernel.device.device_info import (
    AtomicFlag,
    DeviceCapability,
    MmapArea,
    MSIXMappable,
    PCIAtomics,
    RegionCapability,
    RegionType,
    SparseMmap,
    UnknownCapability,
    ZPCIBase,
    ZPCIGroup,
    ZPCIPfip,
    ZPCIUtil,
    device_capabilities,
    mappable_areas,
    region_capabilities,
)
from pyiommufd.uapi.device_ioctls import capability_chain

PAGE = 4096


def raw(number: int, body: bytes, version: int = 1) -> tuple[int, int, bytes]:
    return number, version, struct.pack("<HHI", number, version, 0) + body


def test_chain_in_order() -> None:
    data = bytes(24) + struct.pack("<HHI", 5, 1, 40) + b"12345678" + struct.pack("<HHI", 2, 3, 0) + b"rest"
    chain = capability_chain(data, 24)
    assert [(number, version) for number, version, _ in chain] == [(5, 1), (2, 3)]
    assert chain[0][2] == data[24:40]
    assert chain[1][2] == data[40:]
    assert capability_chain(data, 0) == []


def test_chain_that_runs_backwards() -> None:
    data = bytes(24) + struct.pack("<HHI", 1, 1, 0) + struct.pack("<HHI", 2, 1, 24)
    assert [(number, len(body)) for number, _, body in capability_chain(data, 32)] == [(2, 8), (1, 8)]


@pytest.mark.parametrize("following", [24, 25, 1 << 20])
def test_chain_that_leads_nowhere(following: int) -> None:
    with pytest.raises(ValueError, match="chain of capabilities"):
        capability_chain(bytes(24) + struct.pack("<HHI", 1, 1, following), 24)


@given(st.binary(max_size=256), st.integers(0, 300))
def test_any_bytes_end(data: bytes, first: int) -> None:
    try:
        chain = capability_chain(data, first)
    except ValueError:
        return
    assert len(chain) <= len(data)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (raw(5, struct.pack("<II", 3, 0)), PCIAtomics(AtomicFlag.COMP32 | AtomicFlag.COMP64)),
        (
            raw(1, struct.pack("<QQHHHBBII", 1 << 40, 2 << 40, 3, 4, 5, 6, 7, 8, 9), 3),
            ZPCIBase(1 << 40, 2 << 40, 3, 4, 5, 6, 7, 8, 9),
        ),
        (raw(1, struct.pack("<QQHHHBB", 1 << 40, 2 << 40, 3, 4, 5, 6, 7)), ZPCIBase(1 << 40, 2 << 40, 3, 4, 5, 6, 7)),
        (raw(2, struct.pack("<QQQHHHBBH", 1, 2, 3, 4, 5, 6, 7, 0, 8)), ZPCIGroup(1, 2, 3, 4, 5, 6, 7, 8)),
        (raw(3, struct.pack("<I", 4) + b"utilXX"), ZPCIUtil(b"util")),
        (raw(4, struct.pack("<I", 3) + b"pfip"), ZPCIPfip(b"pfi")),
        (raw(77, b"what", 2), UnknownCapability(77, 2, b"what")),
    ],
)
def test_capabilities_of_a_device(given_: tuple[int, int, bytes], expected: DeviceCapability) -> None:
    assert device_capabilities([given_]) == (expected,)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (
            raw(1, struct.pack("<IIQQQQ", 2, 0, 0, PAGE, 3 * PAGE, 5 * PAGE)),
            SparseMmap((MmapArea(0, PAGE), MmapArea(3 * PAGE, 5 * PAGE))),
        ),
        (raw(2, struct.pack("<II", 1, 2)), RegionType(1, 2)),
        (raw(3, b""), MSIXMappable()),
        (raw(4, b"?"), UnknownCapability(4, 1, b"?")),
    ],
)
def test_capabilities_of_a_region(given_: tuple[int, int, bytes], expected: RegionCapability) -> None:
    assert region_capabilities([given_]) == (expected,)


def test_capability_that_is_cut_off() -> None:
    with pytest.raises(ValueError, match="too few"):
        region_capabilities([raw(1, struct.pack("<IIQQ", 2, 0, 0, PAGE))])
    with pytest.raises(ValueError, match="too few"):
        device_capabilities([raw(5, b"1234")])


def test_mappable_areas() -> None:
    table = MmapArea(0x2010, 16 * 65)
    assert mappable_areas(0x8000, (), None, PAGE) == (MmapArea(0, 0x8000),)
    assert mappable_areas(0x8000, (MSIXMappable(),), table, PAGE) == (MmapArea(0, 0x8000),)
    sparse = SparseMmap((MmapArea(0, 0x1000), MmapArea(0x2000, 0), MmapArea(0x4000, 0x1000)))
    assert mappable_areas(0x8000, (sparse, MSIXMappable()), table, PAGE) == (sparse.areas[0], sparse.areas[2])
    # Without the kernel's word the pages that hold the table are left out.
    assert mappable_areas(0x8000, (), table, PAGE) == (MmapArea(0, 0x2000), MmapArea(0x3000, 0x5000))
    assert mappable_areas(0x8000, (), MmapArea(0x2FF0, 32), PAGE) == (MmapArea(0, 0x2000), MmapArea(0x4000, 0x4000))
    assert mappable_areas(0x8000, (), MmapArea(0, 16), PAGE) == (MmapArea(0x1000, 0x7000),)
    assert mappable_areas(PAGE, (), MmapArea(0, 16), PAGE) == ()
    assert str(MmapArea(0x1000, 0x1000)) == "0x1000..0x1fff"
