"""Many pieces of one buffer, mapped as one."""

from __future__ import annotations

from typing import Any

import pytest

from pyiommufd import IOAS, AlreadyMappedError, Device, DMABuffer
from pyiommufd.testing.edu import EduDriver

IOVA = 0x100000
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
        with pytest.raises(TypeError, match=r"a piece is \(offset, length, iova\), three ints, not "):
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
