"""Address spaces without any device: these need no IOMMU."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import IOAS, IOMMUFD, AccessDeniedError, AlreadyMappedError, DMABuffer, IoctlError, NotFoundError
from tests.guest.dma import IOVA


def test_map_at_an_address_and_where_the_kernel_likes(ioas: IOAS, buffer: DMABuffer) -> None:
    fixed, chosen = ioas.map(buffer, iova=IOVA), ioas.map(DMABuffer(8192))
    assert (fixed.iova, fixed.length, chosen.length) == (IOVA, len(buffer), 8192)
    assert chosen.iova + 8192 <= IOVA or chosen.iova >= IOVA + len(buffer)
    assert set(ioas.mappings) == {fixed, chosen}
    assert ioas.unmap(IOVA, len(buffer)) == len(buffer)
    assert ioas.unmap_all() == 8192
    assert ioas.unmap_all() == 0
    assert ioas.mappings == ()


def test_an_overlap_and_a_cut_are_refused_and_change_nothing(ioas: IOAS, buffer: DMABuffer) -> None:
    mapping = ioas.map(buffer, iova=IOVA)
    with pytest.raises(AlreadyMappedError):
        ioas.map(DMABuffer(8192), iova=IOVA - 4096)
    with pytest.raises(NotFoundError):
        ioas.unmap(IOVA, 4096)
    with pytest.raises(NotFoundError):
        ioas.unmap(IOVA << 8, 4096)
    assert ioas.mappings == (mapping,)
    mapping.unmap()


def test_allowed_ranges_bind_what_the_kernel_chooses(ioas: IOAS) -> None:
    (whole,) = ioas.iova_ranges()
    assert (whole.start, whole.last) == (0, (1 << 64) - 1)
    ioas.allow_iovas([(0x40000000, 0x40002FFF)])
    with ioas.map(DMABuffer(8192)) as mapping:
        assert 0x40000000 <= mapping.iova <= 0x40001000
        with pytest.raises(IoctlError) as caught:
            ioas.map(DMABuffer(8192))
        assert caught.value.errno == errno.ENOSPC
    ioas.allow_iovas([])


def test_below_finds_the_lowest_room(ioas: IOAS, buffer: DMABuffer) -> None:
    low = ioas.map(DMABuffer(4096), below=1 << 28)
    assert 0 < low.iova < 1 << 28
    assert ioas.map(buffer, below=1 << 28).iova == low.iova + 4096


def test_many_pieces_are_mapped_all_or_none(ioas: IOAS, buffer: DMABuffer) -> None:
    in_the_way = ioas.map(DMABuffer(4096), iova=IOVA + 8192)
    pieces = [(0, 4096, IOVA), (4096, 4096, IOVA + 4096), (8192, 4096, IOVA + 8192)]
    with pytest.raises(AlreadyMappedError):
        ioas.map_many(buffer, pieces)
    assert ioas.mappings == (in_the_way,)
    in_the_way.unmap()
    mapped = ioas.map_many(buffer, pieces)
    assert mapped.iovas == (IOVA, IOVA + 4096, IOVA + 8192)
    mapped.unmap()
    assert ioas.unmap_all() == 0


def test_a_copy_shares_the_memory_and_its_rights(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    other = iommufd.alloc_ioas()
    ioas.map(buffer, iova=IOVA, writeable=False)
    with pytest.raises(AccessDeniedError):
        other.copy_from(ioas, IOVA, 4096)
    copy = other.copy_from(ioas, IOVA, 4096, dst_iova=IOVA << 1, writeable=False)
    assert (copy.iova, copy.length) == (IOVA << 1, 4096)
    with pytest.raises(NotFoundError):
        other.copy_from(ioas, IOVA << 4, 4096, writeable=False)
    assert other.unmap_all() == 4096


def test_memory_off_page_boundaries_is_refused_before_the_kernel(ioas: IOAS) -> None:
    # From within a buffer, as the heap may by chance give a bytearray that begins with a page.
    with pytest.raises(ValueError, match="DMABuffer"):
        ioas.map(memoryview(DMABuffer(8192))[16:4112])
    with pytest.raises(ValueError, match="page"):
        ioas.map(DMABuffer(4096), iova=IOVA + 1)
    assert ioas.mappings == ()
