"""Twins of vfio_dma_mapping_test.c: memory of pages of each size, and the end of the address space."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from pyiommufd import AlreadyMappedError, DMABuffer, NotFoundError
from pyiommufd.testing.drivers.igb import IgbDriver
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import HUGE, PAGE, refused
from tests.conformance.vfio.conftest import Space

FRAME = 512


@pytest.fixture(
    params=[None, HUGE, 1 << 30],
    ids=["iommufd_anonymous", "iommufd_anonymous_hugetlb_2mb", "iommufd_anonymous_hugetlb_1gb"],
)
def memory(request: pytest.FixtureRequest, huge_pages: None) -> DMABuffer:
    """One page."""
    return DMABuffer(request.param or PAGE, huge_page_size=request.param)


@twin("vfio_dma_mapping_test.dma_map_unmap", Route.PUBLIC)
def test_map_and_unmap(attached: Space, memory: DMABuffer) -> None:
    ioas, length = attached.ioas, len(memory)
    attached.device.bus_master = True
    with IgbDriver(attached.device, ioas) as igb:
        mapping = ioas.map(memory)
        iova = mapping.iova
        assert mapping.length == length
        # From the first to the last bytes of it.
        memory[:FRAME] = b"s" * FRAME
        igb.copy(iova, iova + length - FRAME, FRAME)
        assert memory[-FRAME:] == b"s" * FRAME

        assert ioas.unmap(iova, length) == length
        with pytest.raises(NotFoundError):
            ioas.unmap(iova, length)
        memory[-FRAME:] = bytes(FRAME)
        # The controller does not say that it could not write.
        igb.copy(iova, iova + length - FRAME, FRAME)
        assert memory[-FRAME:] == bytes(FRAME)
    memory.close()


@pytest.fixture
def last_page(space: Space) -> int:
    """The iova of the last page that the device reaches."""
    ranges = space.ioas.iova_ranges()
    assert all(each.start < each.last for each in ranges)
    assert all(one.last < other.start for one, other in pairwise(ranges))
    return ranges[-1].last & -PAGE


def map_page(space: Space, iova: int) -> None:
    page = DMABuffer(PAGE)
    assert space.ioas.map(page, iova=iova).iova == iova
    with pytest.raises(AlreadyMappedError):
        space.ioas.map(page, iova=iova)


@twin("vfio_dma_map_limit_test.unmap_range", Route.PUBLIC)
def test_unmap_of_the_last_page(space: Space, last_page: int) -> None:
    map_page(space, last_page)
    assert space.ioas.unmap(last_page, PAGE) == PAGE
    with pytest.raises(NotFoundError):
        space.ioas.unmap(last_page, PAGE)


@twin("vfio_dma_map_limit_test.unmap_all", Route.PUBLIC)
def test_unmap_of_everything(space: Space, last_page: int) -> None:
    map_page(space, last_page)
    assert space.ioas.unmap_all() == PAGE
    assert space.ioas.unmap_all() == 0


@twin("vfio_dma_map_limit_test.overflow", Route.PUBLIC)
def test_past_the_end_of_64_bits(space: Space) -> None:
    memory = DMABuffer(2 * PAGE)
    iova = 2**64 - PAGE
    with refused(errno.EOVERFLOW):
        space.ioas.map(memory, iova=iova)
    with refused(errno.EOVERFLOW):
        space.ioas.unmap(iova, len(memory))
    assert space.ioas.mappings == ()
