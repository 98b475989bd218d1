"""Addresses that are taken, reserved, out of reach, or at the ends of the space."""

from __future__ import annotations

import contextlib
import errno
import mmap

import pytest

from pyiommufd import (
    IOAS,
    AlreadyMappedError,
    Device,
    DMABuffer,
    HostDevice,
    IoctlError,
    Verdict,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives

PAGE = mmap.PAGESIZE
TOP = 1 << 64


@pytest.mark.long
def test_every_kind_of_overlap_is_refused_and_changes_nothing(device: Device, ioas: IOAS, arrives: Arrives) -> None:
    device.attach(ioas)
    middle = DMABuffer(4 * PAGE)
    mapping = ioas.map(middle, iova=IOVA)
    other = DMABuffer(16 * PAGE)
    view = memoryview(other)
    for start, size in ((0, 4), (-1, 2), (3, 2), (1, 2), (-2, 16), (0, 1), (3, 1)):
        with pytest.raises(AlreadyMappedError) as caught:
            ioas.map(view[: size * PAGE], iova=IOVA + start * PAGE)
        assert caught.value.errno == errno.EEXIST
        assert f"{IOVA:#x}..{IOVA + 4 * PAGE - 1:#x}" in str(caught.value)
    assert ioas.mappings == (mapping,)
    with EduDriver(device) as edu:
        assert arrives(edu, middle)
    view.release()
    del caught  # whose traceback has the view
    other.close()
    assert ioas.unmap_all() == 4 * PAGE


@pytest.mark.parametrize("attached", [False, True])
def test_the_ends_of_the_address_space(device: Device, ioas: IOAS, attached: bool) -> None:
    if attached:
        device.attach(ioas)
    last = ioas.iova_ranges()[-1].last
    buffer = DMABuffer(2 * PAGE)
    page = memoryview(buffer)[:PAGE]
    # The first page and the last one are addresses like others.
    low = ioas.map(page, iova=0)
    assert low.iova == 0
    high = ioas.map(page, iova=last + 1 - PAGE)
    assert high.iova == last + 1 - PAGE
    high.unmap()
    for iova in (TOP - PAGE, TOP - 2 * PAGE):
        with contextlib.suppress(IoctlError):
            ioas.map(buffer, iova=iova).unmap()
    for iova in (TOP, TOP - 1, last):
        with pytest.raises(ValueError, match=r"64 bits|page boundary"):
            ioas.map(page, iova=iova)
    # All is gone by the range that says "everything", in the record as in the kernel.
    with contextlib.suppress(IoctlError):
        ioas.map(page, iova=TOP - PAGE)
    assert ioas.unmap(0, TOP - 1) in (PAGE, 2 * PAGE)
    assert ioas.mappings == ()
    page.release()
    buffer.close()


def test_reserved_and_unreachable_addresses(device: Device, ioas: IOAS, first: HostDevice) -> None:
    device.attach(ioas)
    group = first.group
    assert group is not None
    buffer = DMABuffer(PAGE)
    reserved = [region for region in group.reserved_regions if region.type != "direct-relaxable"]
    assert reserved
    for region in reserved:
        for iova in (region.start, region.start + PAGE, region.last + 1 - PAGE):
            with pytest.raises(IoctlError, match="reserved") as caught:
                ioas.map(buffer, iova=iova)
            assert caught.value.errno == errno.EINVAL
        # Right before it and right after it there is room.
        ioas.map(buffer, iova=region.start - PAGE).unmap()
        if region.last + 1 < ioas.iova_ranges()[-1].last:
            ioas.map(buffer, iova=region.last + 1).unmap()
    beyond = ioas.iova_ranges()[-1].last + 1
    with pytest.raises(IoctlError, match="reach") as caught:
        ioas.map(buffer, iova=beyond)
    assert caught.value.errno == errno.EINVAL
    assert ioas.unmap_all() == 0
    del caught  # whose traceback has the memory
    buffer.close()


def test_mapped_too_high_for_the_device_is_refused_by_the_attach_that_names_it(device: Device, ioas: IOAS) -> None:
    good = ioas.map(DMABuffer(PAGE), iova=IOVA)
    high = ioas.map(DMABuffer(PAGE), iova=1 << 60)
    preview = device.preview_attach(ioas)
    assert preview.verdict is Verdict.REFUSED
    with pytest.raises(IoctlError) as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EADDRINUSE
    assert f"{1 << 60:#x}" in str(caught.value)
    assert f"{IOVA:#x}.." not in str(caught.value)
    high.unmap()
    device.attach(ioas)
    assert ioas.mappings == (good,)
