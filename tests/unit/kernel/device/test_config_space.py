"""The walk of the capabilities of a configuration space."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pyiommufd.kernel.device.config_space import (
    CapabilityID,
    ExtendedCapabilityID,
    PCICapability,
    walk_capabilities,
)


def reader(image: bytes) -> Callable[[int, int], bytes]:
    def read(offset: int, size: int) -> bytes:
        assert 0 <= offset <= len(image) - size
        return image[offset : offset + size]

    return read


def space(size: int, pieces: dict[int, bytes]) -> bytes:
    image = bytearray(size)
    image[0x06] = 0x10
    for offset, data in pieces.items():
        image[offset : offset + len(data)] = data
    return bytes(image)


def extended(number: int, version: int, following: int) -> bytes:
    return (number | version << 16 | following << 20).to_bytes(4, "little")


def test_both_lists() -> None:
    image = space(
        4096,
        {
            0x34: b"\x43",  # the two lowest bits are reserved
            0x40: b"\x10\x60",
            0x60: b"\x00\x80",  # the null capability
            0x80: b"\x7e\x90",
            0x90: b"\x11\x00",
            0x100: extended(0x0001, 2, 0x150),
            0x150: extended(0, 0, 0x200),  # hidden by the kernel
            0x200: extended(0x7777, 1, 0),
        },
    )
    assert walk_capabilities(reader(image), 4096) == (
        PCICapability(CapabilityID.PCIE, 0x40),
        PCICapability(0x7E, 0x80),
        PCICapability(CapabilityID.MSIX, 0x90),
        PCICapability(ExtendedCapabilityID.AER, 0x100, 2, extended=True),
        PCICapability(0x7777, 0x200, 1, extended=True),
    )


def test_none() -> None:
    assert walk_capabilities(reader(bytes(256)), 256) == ()
    assert walk_capabilities(reader(b"\xff" * 4096), 4096) == ()
    # The status says that there is no list, whatever the pointer holds.
    image = bytearray(space(256, {0x34: b"\x40", 0x40: b"\x05\x00"}))
    image[0x06] = 0
    assert walk_capabilities(reader(bytes(image)), 256) == ()


def test_circles_end() -> None:
    image = space(4096, {0x34: b"\x40", 0x40: b"\x05\x40", 0x100: extended(1, 1, 0x140), 0x140: extended(2, 1, 0x100)})
    assert [one.offset for one in walk_capabilities(reader(image), 4096)] == [0x40, 0x100, 0x140]


@given(st.data(), st.sampled_from([256, 4096]))
def test_any_space_ends_and_is_not_left(data: st.DataObject, size: int) -> None:
    pieces = data.draw(st.dictionaries(st.integers(0, size - 8), st.binary(min_size=1, max_size=8), max_size=40))
    found = walk_capabilities(reader(space(size, pieces)), size)
    assert len({one.offset for one in found}) == len(found)
