"""Where in an address space mappings can be: what devices reach, what is reserved, and what is kept for them."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Device,
    DMABuffer,
    DMAMapping,
    IoctlError,
    IOVARange,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA

PAGE = mmap.PAGESIZE
U64_MAX = 0xFFFF_FFFF_FFFF_FFFF


def test_reserved_addresses_are_refused_once_a_device_is_attached(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    with pytest.raises(IoctlError, match="takes mappings at") as caught:
        ioas.map(DMABuffer(PAGE), iova=0xFEE0_0000)
    assert caught.value.errno == errno.EINVAL
    assert not any(0xFEE0_0000 in allowed for allowed in ioas.iova_ranges())


def test_addresses_beyond_the_iommus_are_refused(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    beyond = ioas.iova_ranges()[-1].last + 1
    with pytest.raises(IoctlError) as caught:
        ioas.map(DMABuffer(PAGE), iova=beyond)
    assert caught.value.errno == errno.EINVAL
    ioas.map(DMABuffer(PAGE), iova=beyond - PAGE)


def test_range_that_wraps_is_refused(ioas: IOAS) -> None:
    with pytest.raises(IoctlError, match="wraps") as caught:
        ioas.map(DMABuffer(2 * PAGE), iova=U64_MAX + 1 - PAGE)
    assert caught.value.errno == errno.EOVERFLOW


def test_attach_narrows_the_ranges_and_detach_widens_them(device: Device, ioas: IOAS) -> None:
    assert [(r.start, r.last) for r in ioas.iova_ranges()] == [(0, U64_MAX)]
    device.attach(ioas)
    narrow = ioas.iova_ranges()
    assert narrow[-1].last < U64_MAX
    assert ioas.iova_alignment == PAGE
    device.detach()
    assert [(r.start, r.last) for r in ioas.iova_ranges()] == [(0, U64_MAX)]


def test_below_keeps_the_iova_within_the_devices_reach(device: Device, edu: EduDriver, ioas: IOAS) -> None:
    device.attach(ioas)
    first, second = DMABuffer(PAGE), DMABuffer(2 * PAGE)
    low = ioas.map(first, below=1 << 28)
    next_one = ioas.map(second, below=1 << 28)
    assert 0 < low.iova < next_one.iova
    assert next_one.iova + next_one.length <= 1 << 28
    first[:5] = b"below"
    edu.copy_in(low.iova, 5)
    edu.copy_out(next_one.iova, 5)
    assert second[:5] == b"below"
    with pytest.raises(ValueError, match="exclude each other"):
        ioas.map(DMABuffer(PAGE), iova=IOVA, below=1 << 28)


def test_no_room_below(ioas: IOAS) -> None:
    ioas.map(DMABuffer(3 * PAGE), iova=PAGE)
    with pytest.raises(IoctlError) as caught:
        ioas.map(DMABuffer(PAGE), below=4 * PAGE)
    assert caught.value.errno == errno.ENOSPC
    # One page more is one page of room.
    assert ioas.map(DMABuffer(PAGE), below=5 * PAGE).iova == 4 * PAGE


def test_allowed_addresses_are_where_the_kernel_chooses(device: Device, ioas: IOAS) -> None:
    ioas.allow_iovas([(0x400_0000, 0x400_0000 + 2 * PAGE - 1)])
    assert {ioas.map(DMABuffer(PAGE)).iova for _ in range(2)} == {0x400_0000, 0x400_0000 + PAGE}
    with pytest.raises(IoctlError) as caught:
        ioas.map(DMABuffer(PAGE))
    assert caught.value.errno == errno.ENOSPC
    ioas.allow_iovas([])
    ioas.map(DMABuffer(PAGE))


def test_below_chooses_among_allowed_addresses(ioas: IOAS) -> None:
    start, last = 0x400_0000, 0x400_0000 + 4 * PAGE - 1
    # Two that adjoin are one, to the kernel as well.
    ioas.allow_iovas([(start + PAGE, last), IOVARange(start, start + PAGE - 1)])
    assert ioas.map(DMABuffer(2 * PAGE), below=1 << 32).iova == start
    memory = DMABuffer(PAGE, memfd=True)
    assert ioas.map_file(memory, PAGE, below=1 << 32).iova == start + 2 * PAGE
    for below in (start + 3 * PAGE, PAGE * 16):
        with pytest.raises(IoctlError, match=f"{start:#x}..{last:#x}, of which those below {below:#x}") as caught:
            ioas.map(DMABuffer(PAGE), below=below)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(IoctlError, match="IOMMU_IOAS_MAP_FILE"):
        ioas.map_file(memory, PAGE, below=PAGE)
    ioas.allow_iovas([])
    assert ioas.map(DMABuffer(PAGE), below=1 << 32).iova == PAGE


def test_allowed_addresses_are_named_where_they_are_used_up(iommufd: IOMMUFD, ioas: IOAS) -> None:
    source = iommufd.alloc_ioas()
    source.map(DMABuffer(1 << 20), iova=IOVA)
    ioas.allow_iovas([IOVARange(0x1000_0000, 0x1000_FFFF)])
    buffer = DMABuffer(1 << 20, memfd=True)
    refused: list[Callable[[], object]] = [
        lambda: ioas.map(buffer),
        lambda: ioas.map_many(buffer, [(0, 1 << 20, None)]),
        lambda: ioas.map_file(buffer, 1 << 20),
        lambda: ioas.copy_from(source, IOVA, 1 << 20),
    ]
    for ask in refused:
        with pytest.raises(IoctlError) as caught:
            ask()
        assert caught.value.errno == errno.ENOSPC
        (cause,) = caught.value.causes
        assert "allow_iovas()" in cause.summary
        assert cause.evidence == "0x10000000..0x1000ffff"
        assert "allow more" in cause.fix
    # What was refused changes nothing.
    with pytest.raises(IoctlError):
        ioas.allow_iovas([(0, 0)])
    with pytest.raises(IoctlError, match="allow_iovas"):
        ioas.map(buffer)
    ioas.allow_iovas([])
    ioas.map(buffer)


def test_allowed_addresses_bind_neither_what_is_mapped_nor_what_is_given(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    ioas.map(DMABuffer(PAGE), iova=IOVA)
    ioas.allow_iovas([(0x400_0000, 0x400_FFFF)])
    ioas.map(DMABuffer(PAGE), iova=2 * IOVA)
    ioas.allow_iovas([(0x500_0000, 0x500_FFFF)])
    assert [next(mapping.ranges())[0] for mapping in ioas.mappings] == [IOVA, 2 * IOVA]


def test_allowed_addresses_that_a_device_cannot_reach(device: Device, ioas: IOAS) -> None:
    ioas.allow_iovas([(0xFEE0_0000, 0xFEE0_FFFF)])
    with pytest.raises(IoctlError) as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EADDRINUSE
    ioas.allow_iovas([])
    device.attach(ioas)
    with pytest.raises(IoctlError, match="0xfee00000") as caught:
        ioas.allow_iovas([(0xFEE0_0000, 0xFEE0_FFFF)])
    assert caught.value.errno == errno.EADDRINUSE
    assert [cause.summary for cause in caught.value.causes] == [
        "a range to be allowed is reserved by an attached device"
    ]


def test_wrong_ranges_to_allow(ioas: IOAS) -> None:
    for wrong in ((PAGE, 0), (-1, PAGE), (0, 1 << 64)):
        with pytest.raises(ValueError, match="64-bit"):
            ioas.allow_iovas([wrong])
    many: Any = memoryview(bytes(16)).cast("B", shape=[8, 2])
    gone: Any = memoryview(bytes(16))
    gone.release()
    wrongs: list[Any] = [[many], [gone], "ab", [5], [(1, 2, 3)], [(0, 1.5)], [(0,)], (0, PAGE), [None]]
    for no_ranges in wrongs:
        with pytest.raises(TypeError, match="an IOVARange or a pair of addresses, not "):
            ioas.allow_iovas(no_ranges)
    for memory in (many, gone):
        with pytest.raises(TypeError, match="ranges are"):
            ioas.allow_iovas(memory)
    with pytest.raises(IoctlError) as caught:
        ioas.allow_iovas([(0, 2 * PAGE), (PAGE, 3 * PAGE)])
    assert caught.value.errno == errno.EINVAL


def test_huge_pages(device: Device, ioas: IOAS, mapping: DMAMapping) -> None:
    assert ioas.huge_pages
    ioas.huge_pages = False
    assert not ioas.huge_pages
    ioas.huge_pages = True
    device.attach(ioas)
    with pytest.raises(IoctlError) as caught:
        ioas.huge_pages = False
    assert caught.value.errno == errno.EINVAL
    (cause,) = caught.value.causes
    assert "while memory is mapped" in cause.summary
    mapping.unmap()
    ioas.huge_pages = False
