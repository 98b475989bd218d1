"""A mapping and its memory: which of the two goes first."""

from __future__ import annotations

import gc
import weakref

import pytest

from pyiommufd import IOAS, IOMMUFD, Device, DMABuffer, DMAMapping
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives


def test_buffer_can_neither_be_closed_nor_resized_while_it_is_mapped(buffer: DMABuffer, mapping: DMAMapping) -> None:
    with pytest.raises(BufferError):
        buffer.close()
    with pytest.raises(BufferError):
        buffer.resize(4096)
    mapping.unmap()
    buffer.close()


def test_failed_map_does_not_hold_the_buffer(ioas: IOAS, mapping: DMAMapping) -> None:
    other = DMABuffer(4096)
    with pytest.raises(OSError, match="EEXIST"):
        ioas.map(other, iova=IOVA)
    other.close()


def test_dropped_mapping_stays_and_keeps_its_memory(device: Device, edu: EduDriver, ioas: IOAS) -> None:
    device.attach(ioas)
    buffer = DMABuffer(4096)
    buffer[:4] = b"stay"
    alive = weakref.ref(buffer)
    ioas.map(buffer, iova=IOVA)
    del buffer
    gc.collect()
    assert alive() is not None
    edu.copy_in(IOVA, 4)
    (mapping,) = ioas.mappings
    result = DMABuffer(4096)
    ioas.map(result, iova=2 * IOVA)
    edu.copy_out(2 * IOVA, 4)
    assert result[:4] == b"stay"
    mapping.unmap()
    del mapping
    gc.collect()
    assert alive() is None


def test_mapping_is_a_context_manager(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    device.attach(ioas)
    with ioas.map(buffer, iova=IOVA) as mapping:
        assert arrives(edu, buffer)
    assert not mapping.mapped
    assert not arrives(edu, buffer)
    buffer.close()


def test_unmap_of_a_stale_mapping_leaves_the_new_one(ioas: IOAS, buffer: DMABuffer) -> None:
    old = ioas.map(buffer, iova=IOVA)
    old.unmap()
    new = ioas.map(buffer, iova=IOVA)
    old.unmap()
    assert new.mapped
    assert not old.mapped
    assert ioas.unmap_all() == new.length


def test_same_memory_twice(device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives) -> None:
    device.attach(ioas)
    low, high = ioas.map(buffer, iova=IOVA), ioas.map(buffer, iova=2 * IOVA)
    high.unmap()
    with pytest.raises(BufferError):
        buffer.close()
    assert arrives(edu, buffer)
    low.unmap()
    buffer.close()


def test_closing_the_iommufd_frees_the_memory(buffer: DMABuffer) -> None:
    with IOMMUFD() as iommufd:
        mapping = iommufd.alloc_ioas().map(buffer, iova=IOVA)
        assert "0x100000..0x103fff" in repr(mapping)
    assert not mapping.mapped
    assert repr(mapping).endswith("unmapped>")
    mapping.unmap()
    buffer.close()


@pytest.mark.parametrize("memfd", [False, True])
@pytest.mark.parametrize("huge_page_size", [None, 2 << 20])
def test_every_kind_of_buffer_takes_dma(
    device: Device, edu: EduDriver, ioas: IOAS, memfd: bool, huge_page_size: int | None, huge_pages: None
) -> None:
    device.attach(ioas)
    buffer = DMABuffer(4096, memfd=memfd, huge_page_size=huge_page_size)
    assert len(buffer) == (huge_page_size or 4096)
    with ioas.map(buffer, iova=2 << 20):
        buffer[:4] = b"data"
        edu.copy_in(2 << 20, 4)
        edu.copy_out((2 << 20) + 4, 4)
        assert buffer[4:8] == b"data"
    buffer.close()
