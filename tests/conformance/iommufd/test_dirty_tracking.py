"""Twins of the fixture ``iommufd_dirty_tracking``: which pages devices have written to."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

import pytest

from pyiommufd import HWPT, IOAS, DMABuffer, HWCapability, UnsupportedError, uapi
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from pyiommufd.uapi import raw
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import HUGE, PAGE, issue, refused

IOVA = commands.APERTURE_START
SMALL = commands.PAGE_SIZE
PASID = 100


@dataclass(frozen=True)
class Variant:
    """How many bytes are mapped, and whether of huge pages."""

    size: int
    huge: bool = False


VARIANTS = {
    "domain_dirty8k": Variant(8 << 10),
    "domain_dirty16k": Variant(16 << 10),
    "domain_dirty64k": Variant(64 << 10),
    "domain_dirty128k": Variant(128 << 10),
    "domain_dirty320k": Variant(320 << 10),
    "domain_dirty64M": Variant(64 << 20),
    "domain_dirty64M_huge": Variant(64 << 20, huge=True),
    "domain_dirty128M": Variant(128 << 20),
    "domain_dirty128M_huge": Variant(128 << 20, huge=True),
}


@dataclass(frozen=True)
class Tracked:
    """An address space, a device whose IOMMU tracks, and memory that is not mapped yet.

    Attributes:
        iommufd: Whose they are.
        ioas: The address space.
        device: The device.
        memory: The memory.
        variant: How it was made.
    """

    iommufd: MockIOMMUFD
    ioas: IOAS
    device: MockDevice
    memory: DMABuffer
    variant: Variant


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def tracked(request: pytest.FixtureRequest, iommufd: MockIOMMUFD, huge_pages: None) -> Tracked:
    variant: Variant = request.param
    memory = DMABuffer(variant.size, huge_page_size=HUGE if variant.huge else None)
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    if not variant.huge:
        # Else contiguous pages would be one entry of the page table, and dirty together.
        ioas.huge_pages = False
    return Tracked(iommufd, ioas, iommufd.mock_device(ioas), memory, variant)


@twin("iommufd_dirty_tracking.enforce_dirty", Route.MOCK)
def test_enforce_dirty(tracked: Tracked) -> None:
    iommufd = tracked.iommufd
    with tracked.device.alloc_hwpt(tracked.ioas, dirty_tracking=True) as hwpt:
        assert hwpt.id
        with iommufd.mock_device(hwpt) as other:
            assert other.on(hwpt.id)
            with refused(errno.EINVAL):
                iommufd.mock_device(hwpt, dirty_tracking=False)

    ioas = iommufd.alloc_ioas()
    with iommufd.mock_device(ioas, dirty_tracking=False) as unable:
        with pytest.raises(UnsupportedError) as caught:
            unable.alloc_hwpt(ioas, dirty_tracking=True)
        assert caught.value.errno == errno.EOPNOTSUPP


def check_switch(hwpt: HWPT, device: MockDevice) -> None:
    """Tracking can be switched on and off: writes are noted in between alone."""
    for on in (True, False):
        hwpt.set_dirty_tracking(on)
        if on:
            device.set_dirty(IOVA, [0], count=1)
        else:
            with refused(errno.EINVAL):
                device.set_dirty(IOVA, [0], count=1)


@twin("iommufd_dirty_tracking.set_dirty_tracking", Route.MOCK)
def test_set_dirty_tracking(tracked: Tracked) -> None:
    with (
        tracked.device.alloc_hwpt(tracked.ioas, dirty_tracking=True) as hwpt,
        tracked.iommufd.mock_device(hwpt) as other,
    ):
        check_switch(hwpt, other)


@twin("iommufd_dirty_tracking.pasid_set_dirty_tracking", Route.MOCK)
def test_pasid_set_dirty_tracking(tracked: Tracked) -> None:
    iommufd = tracked.iommufd
    with tracked.device.alloc_hwpt(tracked.ioas, pasid=True, dirty_tracking=True) as hwpt:
        with iommufd.mock_device(hwpt, pasid=True) as other:
            other.attach(hwpt, PASID)
            assert other.on(hwpt.id, PASID)
            check_switch(hwpt, other)
            other.detach(PASID)
            assert other.on(None, PASID)

        ioas = iommufd.alloc_ioas()
        assert ioas.id
        with iommufd.mock_device(ioas, pasid=True, dirty_tracking=False) as unable:
            with refused(errno.EINVAL):
                unable.attach(hwpt, PASID)
            assert unable.on(None, PASID)


@twin("iommufd_dirty_tracking.device_dirty_capability", Route.MOCK)
def test_device_dirty_capability(tracked: Tracked) -> None:
    with tracked.device.alloc_hwpt(tracked.ioas) as hwpt, tracked.iommufd.mock_device(hwpt) as other:
        assert other.on(hwpt.id)
        assert HWCapability.DIRTY_TRACKING in tracked.device.hw_info().capabilities


# Dirty bitmap


def bits(pattern: str, count: int) -> bytes:
    """A pattern of bits, the first one last, as often as it takes: as the kernel lays them out."""
    length = -(-count // 64) * 8
    return int(pattern * (count // len(pattern)), 2).to_bytes(length, "little")


def check_bitmaps(tracked: Tracked, *, clear: bool) -> None:
    variant, ioas, fd = tracked.variant, tracked.ioas, tracked.iommufd.fileno()
    ioas.map(memoryview(tracked.memory)[: variant.size], iova=IOVA)
    kind = commands.PageTableType.HUGE if variant.huge else commands.PageTableType.DEFAULT
    hwpt = tracked.device.alloc_hwpt(
        ioas, dirty_tracking=True, data_type=commands.HWPT_DATA_TYPE, data=struct.pack("=2I", 0, kind)
    )
    hwpt.set_dirty_tracking(True)

    # Of every second entry of the page table the first page is written to: the entry is noted as a whole.
    entry = commands.HUGE_PAGE_SIZE if variant.huge else PAGE
    each = entry // SMALL
    count = variant.size // SMALL
    entries = count // (2 * each)
    written = bits("0" * (2 * each - 1) + "1", count)
    noted = bits("0" * each + "1" * each, count)
    again = bytes(len(noted)) if clear else noted

    def write(address: int) -> None:
        assert commands.dirty(fd, hwpt.id, IOVA, variant.size, SMALL, address) == entries

    def check_public() -> None:
        bitmap = bytearray(written)
        write(raw.address_of(bitmap))
        for expected in (noted, again):
            seen = hwpt.dirty_bitmap(IOVA, variant.size, page_size=SMALL, clear=clear)
            assert bytes(seen.words) == expected
            assert seen.count() == (entries * each if any(expected) else 0)
            ranges = [(one.start - IOVA, one.last - IOVA + 1) for one in seen.ranges()]
            assert ranges == ([(2 * n * entry, (2 * n + 1) * entry) for n in range(entries)] if any(expected) else [])

    def check_raw(offset: int) -> None:
        """The same, in memory at that offset from a page boundary."""
        memory = memoryview(DMABuffer(2 * PAGE + len(written)))[offset : offset + len(written)]
        memory[:] = written
        write(raw.address_of(memory))
        for expected in (noted, again):
            memory[:] = bytes(len(memory))
            issue(
                tracked.iommufd,
                uapi.IOMMU_HWPT_GET_DIRTY_BITMAP,
                "iommu_hwpt_get_dirty_bitmap",
                hwpt_id=hwpt.id,
                flags=0 if clear else uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
                iova=IOVA,
                length=variant.size,
                page_size=SMALL,
                data=raw.address_of(memory),
            )
            assert bytes(memory) == expected

    check_public()
    # On a page, within one, and not even at a word.
    for offset in (0, SMALL, 0xFF1):
        check_raw(offset)
    hwpt.close()


@twin("iommufd_dirty_tracking.get_dirty_bitmap", Route.RAW)
def test_get_dirty_bitmap(tracked: Tracked) -> None:
    check_bitmaps(tracked, clear=True)


@twin("iommufd_dirty_tracking.get_dirty_bitmap_no_clear", Route.RAW)
def test_get_dirty_bitmap_no_clear(tracked: Tracked) -> None:
    check_bitmaps(tracked, clear=False)
