"""Many pieces of one buffer, mapped as one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import IOAS, IOMMUFD, AlreadyMappedError, Device, DMABuffer, DMAMapping
from pyiommufd.kernel.memory import mapping_requests
from pyiommufd.kernel.memory.mapping_table import MappingTable
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.uapi import ioctls
from tests.guest.dma import IOVA

PAGE = 4096


def test_pieces_are_where_they_were_asked_for(device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer) -> None:
    device.attach(ioas)
    # In another order than in the buffer.
    mappings = ioas.map_many(buffer, [(0, PAGE, IOVA + PAGE), (PAGE, PAGE, IOVA), (2 * PAGE, 2 * PAGE, 2 * IOVA)])
    assert mappings.iovas == (IOVA + PAGE, IOVA, 2 * IOVA)
    assert (len(mappings), mappings.length) == (3, 4 * PAGE)
    buffer[:4] = b"zero"
    edu.copy_in(IOVA + PAGE, 4)
    edu.copy_out(IOVA, 4)
    edu.copy_out(2 * IOVA + PAGE, 4)
    assert buffer[PAGE : PAGE + 4] == buffer[3 * PAGE : 3 * PAGE + 4] == b"zero"
    mappings.unmap()
    mappings.unmap()
    buffer[PAGE : PAGE + 4] = b"kept"
    edu.copy_out(IOVA, 4)
    assert buffer[PAGE : PAGE + 4] == b"kept"
    assert ioas.unmap_all() == 0


def test_iovas_that_the_kernel_chooses(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    buffer = DMABuffer(3000 * PAGE)
    with ioas.map_many(buffer, ((at * PAGE, PAGE, None) for at in range(3000))) as mappings:
        assert len(set(mappings.iovas)) == 3000
        with pytest.raises(AlreadyMappedError):
            ioas.map(DMABuffer(PAGE), iova=mappings.iovas[2999])
        with pytest.raises(BufferError):
            buffer.close()
    buffer.close()
    assert ioas.unmap_all() == 0


def test_all_or_none(ioas: IOAS, buffer: DMABuffer) -> None:
    taken = ioas.map(DMABuffer(PAGE), iova=2 * IOVA)
    with pytest.raises(AlreadyMappedError):
        ioas.map_many(buffer, [(0, PAGE, IOVA), (PAGE, PAGE, 2 * IOVA), (2 * PAGE, PAGE, 3 * IOVA)])
    assert ioas.mappings == (taken,)
    assert ioas.unmap_all() == PAGE
    buffer.close()


def test_range_unmap_takes_pieces_out(ioas: IOAS, buffer: DMABuffer) -> None:
    mappings = ioas.map_many(buffer, [(at * PAGE, PAGE, IOVA + 2 * at * PAGE) for at in range(4)])
    assert ioas.unmap(IOVA, 3 * PAGE) == 2 * PAGE
    assert mappings.iovas == (IOVA + 4 * PAGE, IOVA + 6 * PAGE)
    with pytest.raises(BufferError):
        buffer.close()
    assert ioas.unmap_all() == 2 * PAGE
    assert not mappings.mapped
    buffer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(-PAGE, PAGE, None)],
        [(0, 0, None)],
        [(0, 5 * PAGE, None)],
        [(0, PAGE, -1)],
        [(1, PAGE, None)],
        [(0, 1, None)],
    ],
)
def test_wrong_pieces(ioas: IOAS, buffer: DMABuffer, pieces: list[tuple[int, int, int | None]]) -> None:
    with pytest.raises(ValueError, match=r"piece|not within|64 bits|page boundar"):
        ioas.map_many(buffer, pieces)
    assert ioas.unmap_all() == 0
    buffer.close()


def test_what_is_no_piece_is_named(ioas: IOAS, buffer: DMABuffer) -> None:
    wrongs: list[Any] = [[5], "ab", [(0, PAGE)], [(0, PAGE, None, 1)], [(0.0, PAGE, None)], [(0, PAGE, 0.0)], [None]]
    for pieces in wrongs:
        with pytest.raises(TypeError, match=r"a piece is \(offset, length, iova or None\) of ints, not "):
            ioas.map_many(buffer, pieces)
    buffer.close()


def test_a_memory_of_several_dimensions_is_no_list_of_pieces(ioas: IOAS, buffer: DMABuffer) -> None:
    """Python itself answers NotImplementedError where such a one is gone through."""
    many: Any = memoryview(bytes(24)).cast("B", shape=[8, 3])
    for pieces in (many, [many]):
        with pytest.raises(TypeError, match=r"offset, length, iova"):
            ioas.map_many(buffer, pieces)
    gone: Any = memoryview(bytes(24))
    gone.release()
    for pieces in (gone, [gone]):
        with pytest.raises((TypeError, ValueError), match=r"offset, length, iova|released"):
            ioas.map_many(buffer, pieces)
    buffer.close()


def between(monkeypatch: pytest.MonkeyPatch, module: object, name: str, act: Callable[[], object]) -> None:
    """Act once, right after the first call of a function: as a signal handler or another thread may."""
    real: Callable[..., Any] = getattr(module, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.undo()
        result = real(*arguments, **keywords)
        act()
        return result

    monkeypatch.setattr(module, name, call)


def test_pieces_that_are_unmapped_while_others_are_mapped(
    monkeypatch: pytest.MonkeyPatch, ioas: IOAS, buffer: DMABuffer
) -> None:
    """What is mapped afterwards keeps its memory, and is unmapped with the rest."""
    between(monkeypatch, ioctls, "ioas_map_many", ioas.unmap_all)
    monkeypatch.setattr(mapping_requests, "PIECES_A_CALL", 2)
    mappings = ioas.map_many(buffer, [(at * PAGE, PAGE, IOVA + at * PAGE) for at in range(4)])
    assert list(mappings.ranges()) == [(IOVA + 2 * PAGE, PAGE), (IOVA + 3 * PAGE, PAGE)]
    assert mappings.mapped
    with pytest.raises(BufferError):
        buffer.close()
    mappings.unmap()
    assert ioas.unmap_all() == 0
    buffer.close()


def test_memory_that_is_mapped_while_it_is_copied(
    monkeypatch: pytest.MonkeyPatch, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer
) -> None:
    """The copy keeps it, though it was not there when the copy began."""
    other = iommufd.alloc_ioas()
    between(monkeypatch, MappingTable, "memory_of", lambda: ioas.map(buffer, iova=IOVA))
    copy = other.copy_from(ioas, IOVA, len(buffer), dst_iova=IOVA)
    assert ioas.unmap_all() == len(buffer)
    with pytest.raises(BufferError):
        buffer.close()
    copy.unmap()
    buffer.close()


def test_memory_that_is_copied_before_its_map_fails(
    monkeypatch: pytest.MonkeyPatch, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer
) -> None:
    other = iommufd.alloc_ioas()
    ioas.map(DMABuffer(PAGE), iova=2 * IOVA)
    between(monkeypatch, ioctls, "ioas_map_many", lambda: other.copy_from(ioas, IOVA, PAGE))
    with pytest.raises(AlreadyMappedError):
        ioas.map_many(buffer, [(0, PAGE, IOVA), (PAGE, PAGE, 2 * IOVA)])
    gc.collect()
    (copy,) = other.mappings
    with pytest.raises(BufferError):
        buffer.close()
    copy.unmap()
    buffer.close()


def test_mapping_that_is_made_while_a_range_is_unmapped(
    monkeypatch: pytest.MonkeyPatch, ioas: IOAS, buffer: DMABuffer
) -> None:
    """The kernel unmaps it with the rest; and what is mapped there next is not taken for it."""
    made: list[DMAMapping] = []
    between(monkeypatch, MappingTable, "pieces", lambda: made.append(ioas.map(buffer, iova=IOVA)))
    assert ioas.unmap_all() == len(buffer)
    assert not made[0].mapped
    another = ioas.map(DMABuffer(PAGE), iova=IOVA)
    made[0].unmap()
    assert another.mapped
    assert ioas.unmap_all() == PAGE
    buffer.close()
