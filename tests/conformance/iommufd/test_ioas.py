"""Twins of the fixture ``iommufd_ioas``: address spaces, what is mapped in them, and where."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import AlreadyMappedError, BusyError, InUseError, NotFoundError, uapi
from pyiommufd.testing.mock import commands
from pyiommufd.uapi import raw
from tests.by_id import destroy
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.conftest import Space
from tests.conformance.iommufd.steps import PAGE, issue, map_at, mock_devices, refused, unmap_at

START = commands.APERTURE_START
LAST = commands.APERTURE_LAST
U64_MAX = 0xFFFF_FFFF_FFFF_FFFF


def lowest_bit(number: int) -> int:
    return number & -number


def check_destroy(space: Space) -> None:
    """It is destroyed where no device is attached, and refused, by the library as by the kernel, where one is."""
    if space.devices:
        with pytest.raises(InUseError):
            space.ioas.close()
        with pytest.raises(BusyError):
            destroy(space.iommufd, space.ioas.id)
    else:
        space.ioas.close()
        with pytest.raises(NotFoundError):
            destroy(space.iommufd, space.ioas.id)


def check_mapped(space: Space, memory: memoryview, iova: int) -> None:
    """This memory is what is mapped there."""
    for device in space.devices:
        assert device.reaches(memory, iova)
    with space.iommufd.mock_access(space.ioas, pin=True) as access:
        access.pin(iova, memory).unpin()


# Create and destroy


@twin("iommufd_ioas.ioas_auto_destroy", Route.PUBLIC)
def test_ioas_auto_destroy(space: Space, buffer: memoryview) -> None:
    """In C it is the fixture's end that destroys it; here something is mapped, and the devices have to go, too."""
    space.ioas.map(buffer, iova=space.base)
    with pytest.raises(AlreadyMappedError):
        space.ioas.map(buffer, iova=space.base)
    assert len(mock_devices()) == len(space.iommufd.devices)
    space.iommufd.close()
    assert mock_devices() == set()


@twin("iommufd_ioas.ioas_destroy", Route.RAW)
def test_ioas_destroy(space: Space) -> None:
    check_destroy(space)


@twin("iommufd_ioas.hwpt_attach", Route.MOCK)
def test_hwpt_attach(space: Space) -> None:
    fd = space.iommufd.fileno()
    if space.devices:
        before = mock_devices()
        stdev_id, hwpt_id, _ = commands.mock_domain(fd, space.devices[0].hwpt_id())
        assert hwpt_id == space.devices[0].hwpt_id()
        assert len(mock_devices() - before) == 1
        destroy(space.iommufd, stdev_id)
        assert mock_devices() == before
    else:
        with pytest.raises(NotFoundError):
            commands.mock_domain(fd, 0)
        # Nor to one that has been, and went with its device.
        device = space.iommufd.mock_device(space.ioas)
        gone = device.hwpt_id()
        device.close()
        with pytest.raises(NotFoundError):
            commands.mock_domain(fd, gone)


@twin("iommufd_ioas.ioas_area_destroy", Route.RAW)
def test_ioas_area_destroy(space: Space, buffer: memoryview) -> None:
    space.ioas.map(buffer[:PAGE], iova=space.base)
    check_mapped(space, buffer[:PAGE], space.base)
    check_destroy(space)


@twin("iommufd_ioas.ioas_area_auto_destroy", Route.MOCK)
def test_ioas_area_auto_destroy(space: Space, buffer: memoryview) -> None:
    for number in range(10):
        space.ioas.map(buffer[:PAGE], iova=space.base + number * PAGE)
    for number in range(10):
        check_mapped(space, buffer[:PAGE], space.base + number * PAGE)
    space.iommufd.close()
    assert mock_devices() == set()


# Map and unmap


@twin("iommufd_ioas.area", Route.PUBLIC)
def test_area(space: Space, buffer: memoryview) -> None:
    ioas, base, page = space.ioas, space.base, buffer[:PAGE]
    for number in range(10):
        with pytest.raises(NotFoundError):
            ioas.unmap(number * PAGE, PAGE)

    for number in range(10):
        ioas.map(page, iova=base + number * PAGE)
    for number in range(10):
        assert ioas.unmap(base + number * PAGE, PAGE) == PAGE

    ioas.map(buffer[: 2 * PAGE], iova=base + 16 * PAGE)
    for cut in (16, 17):
        with pytest.raises(NotFoundError):
            ioas.unmap(base + cut * PAGE, PAGE)
    for first, count in ((16, 2), (16, 1), (17, 1), (15, 2), (15, 3)):
        with pytest.raises(AlreadyMappedError):
            ioas.map(buffer[: count * PAGE], iova=base + first * PAGE)

    assert ioas.unmap_all() == 2 * PAGE
    assert ioas.unmap_all() == 0


@twin("iommufd_ioas.unmap_fully_contained_areas", Route.PUBLIC)
def test_unmap_fully_contained_areas(space: Space, buffer: memoryview) -> None:
    ioas, base = space.ioas, space.base + 4 * PAGE
    for number in range(4):
        ioas.map(buffer[: 8 * PAGE], iova=base + number * 16 * PAGE)
    for cut in (base - 4 * PAGE, base + (3 * 16 + 4) * PAGE):
        with pytest.raises(NotFoundError):
            ioas.unmap(cut, 8 * PAGE)
    assert ioas.unmap(base - 4 * PAGE, (4 + 3 * 16 + 8) * PAGE) == 32 * PAGE
    assert ioas.unmap_all() == 0


# Addresses


@twin("iommufd_ioas.area_auto_iova", Route.RAW)
def test_area_auto_iova(space: Space, buffer: memoryview) -> None:
    ioas = space.ioas
    mappings = [ioas.map(buffer[:PAGE]) for _ in range(10)]
    assert len({mapping.iova for mapping in mappings}) == 10
    for mapping in mappings:
        assert ioas.unmap(mapping.iova, PAGE) == PAGE

    lengths = [PAGE * (number + 1) for number in range(10)]
    # Where nothing is pinned, memory that is not there will do, and be better aligned than any.
    address = raw.address_of(buffer) if space.devices else 1 << 31
    iovas = [map_at(ioas, address, length) for length in lengths]
    for iova, length in zip(iovas, lengths, strict=True):
        assert iova % lowest_bit(length) == 0
        assert unmap_at(ioas, iova, length) == length

    def place_and_unmap() -> list[range]:
        """Where the kernel puts pieces of all these lengths, which have to be aligned to theirs."""
        mappings = [ioas.map(buffer[:length]) for length in lengths]
        for mapping, length in zip(mappings, lengths, strict=True):
            assert mapping.iova % lowest_bit(length) == 0
            assert ioas.unmap(mapping.iova, length) == length
        return [range(mapping.iova, mapping.iova + length) for mapping, length in zip(mappings, lengths, strict=True)]

    reserved = range(4 * PAGE, 104 * PAGE)
    space.iommufd.reserve(ioas, reserved.start, len(reserved))
    for place in place_and_unmap():
        assert place.stop <= reserved.start or reserved.stop <= place.start

    with refused(errno.EADDRINUSE):
        ioas.allow_iovas([(PAGE, 600 * PAGE)])
    allowed = range(START + PAGE, START + 600 * PAGE) if space.devices else range(200 * PAGE, 600 * PAGE)
    ioas.allow_iovas([(allowed.start, allowed.stop - 1)])
    for place in place_and_unmap():
        assert allowed.start <= place.start
        assert place.stop <= allowed.stop


@twin("iommufd_ioas.reserved_overflow", Route.MOCK)
def test_reserved_overflow(space: Space, buffer: memoryview) -> None:
    # Up to four pages less than the end of all addresses: what is left is too small.
    space.iommufd.reserve(space.ioas, 6, 0xFFFF_FFFF_FFFF_8001)
    with refused(errno.ENOSPC):
        space.ioas.map(buffer[: 5 * PAGE])
    assert space.ioas.unmap_all() == 0


@twin("iommufd_ioas.area_allowed", Route.MOCK)
def test_area_allowed(space: Space) -> None:
    ioas, base = space.ioas, space.base
    allowed = [(base, base + 600 * PAGE)]
    ioas.allow_iovas(allowed)
    with refused(errno.EADDRINUSE):
        space.iommufd.reserve(ioas, base + PAGE, PAGE)
    ioas.allow_iovas([])
    space.iommufd.reserve(ioas, base + PAGE, PAGE)
    with refused(errno.EADDRINUSE):
        ioas.allow_iovas(allowed)


@twin("iommufd_ioas.iova_ranges", Route.RAW)
def test_iova_ranges(space: Space) -> None:
    ioas = space.ioas
    memory = memoryview(bytearray(64)).cast("Q")

    def with_room_for(count: int, expected: int) -> int:
        """Ask with that much room; the kernel says how many there are."""
        memory[:] = memoryview(bytes(64)).cast("Q")
        command = raw.struct(
            "iommu_ioas_iova_ranges", ioas_id=ioas.id, num_iovas=count, allowed_iovas=raw.address_of(memory)
        )
        if count < expected:
            with refused(errno.EMSGSIZE):
                raw.ioctl(space.iommufd.fileno(), uapi.IOMMU_IOAS_IOVA_RANGES, command)
        else:
            raw.ioctl(space.iommufd.fileno(), uapi.IOMMU_IOAS_IOVA_RANGES, command)
        return command.num_iovas

    whole = (START, LAST) if space.devices else (0, U64_MAX)
    assert [(one.start, one.last) for one in ioas.iova_ranges()] == [whole]
    assert ioas.iova_alignment == (commands.PAGE_SIZE if space.devices else 1)
    assert with_room_for(0, 1) == 1
    assert list(memory) == [0] * 8

    space.iommufd.reserve(ioas, PAGE, PAGE)
    parts = [whole] if space.devices else [(0, PAGE - 1), (2 * PAGE, U64_MAX)]
    assert [(one.start, one.last) for one in ioas.iova_ranges()] == parts
    assert with_room_for(1, len(parts)) == len(parts)
    assert list(memory) == [*parts[0], 0, 0, 0, 0, 0, 0]
    assert with_room_for(4, len(parts)) == len(parts)
    assert list(memory)[: 2 * len(parts)] == [number for part in parts for number in part]


@twin("iommufd_ioas.ioas_iova_alloc", Route.RAW)
def test_ioas_iova_alloc(space: Space, buffer: memoryview) -> None:
    ioas, address = space.ioas, raw.address_of(buffer)
    for length in range(1, 2 * PAGE):
        if space.devices and length % commands.PAGE_SIZE:
            with refused(errno.EINVAL):
                map_at(ioas, address, length)
        else:
            assert unmap_at(ioas, map_at(ioas, address, length), length) == length
    assert ioas.unmap_all() == 0


# Copies


@twin("iommufd_ioas.copy_area", Route.MOCK)
def test_copy_area(space: Space, buffer: memoryview) -> None:
    ioas, base, page = space.ioas, space.base, buffer[:PAGE]
    ioas.map(page, iova=base)
    ioas.copy_from(ioas, base, PAGE, dst_iova=base + PAGE, readable=False)
    for device in space.devices:
        assert device.reaches(page, base + PAGE)
    other = space.iommufd.alloc_ioas()
    assert other.id
    other.copy_from(ioas, base, PAGE, dst_iova=0, readable=False)
    for where, iova in ((ioas, base + PAGE), (other, 0)):
        with space.iommufd.mock_access(where) as access:
            access.write(iova, b"written there")
            assert bytes(page[:13]) == b"written there"
            page[:13] = bytes(13)


@twin("iommufd_ioas.copy_sweep", Route.RAW)
def test_copy_sweep(space: Space, buffer: memoryview) -> None:
    other, length = space.iommufd.alloc_ioas(), commands.PAGE_SIZE
    # One byte short of the page where that can be.
    end = START + len(buffer) - (0 if space.devices else 1)
    map_at(space.ioas, raw.address_of(buffer), end - START, START)
    for iova in range(START - PAGE, end, 511):
        if iova < START or iova + length > end:
            with pytest.raises(NotFoundError):
                other.copy_from(space.ioas, iova, length, dst_iova=START, readable=False)
        else:
            copy = other.copy_from(space.ioas, iova, length, dst_iova=START, readable=False)
            assert copy.iova == START
            assert other.unmap(START, length) == length
    other.close()
    with pytest.raises(NotFoundError):
        destroy(space.iommufd, other.id)


# Huge pages


@twin("iommufd_ioas.ioas_option_huge_pages", Route.RAW)
def test_ioas_option_huge_pages(space: Space) -> None:
    ioas = space.ioas
    assert ioas.huge_pages is True
    ioas.huge_pages = False
    assert ioas.huge_pages is False
    with refused(errno.EINVAL):
        issue(
            space.iommufd,
            uapi.IOMMU_OPTION,
            "iommu_option",
            option_id=uapi.IOMMU_OPTION_HUGE_PAGES,
            op=uapi.IOMMU_OPTION_OP_SET,
            object_id=ioas.id,
            val64=2,
        )
    ioas.huge_pages = True
    assert ioas.huge_pages is True


@twin("iommufd_ioas.ioas_align_change", Route.RAW)
def test_ioas_align_change(space: Space, buffer: memoryview) -> None:
    ioas, middle = space.ioas, raw.address_of(buffer) + commands.PAGE_SIZE
    ioas.map(buffer[:PAGE], iova=START)
    if space.devices:
        # C leaves it at that: what is mapped in a page table already stands against it.
        with refused(errno.EINVAL):
            ioas.huge_pages = False
        assert ioas.huge_pages is True
        return

    # Without huge pages all has to be on page boundaries, as what is mapped so far is.
    ioas.huge_pages = False
    with refused(errno.EINVAL):
        map_at(ioas, middle, PAGE, START + PAGE)
    ioas.huge_pages = False

    ioas.huge_pages = True
    assert map_at(ioas, middle, PAGE, START + PAGE) == START + PAGE
    with refused(errno.EADDRINUSE):
        ioas.huge_pages = False

    assert unmap_at(ioas, START + PAGE, PAGE) == PAGE
    assert ioas.unmap(START, PAGE) == PAGE
