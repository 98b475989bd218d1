"""The types that are written by hand, on an address space whose file is closed: the kernel is never asked."""

from __future__ import annotations

import errno
import gc
import mmap
import sys
import weakref
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import DMABuffer, DMAMapping
from pyiommufd.kernel.memory.mapping_requests import piece_numbers
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.fast import Held, Mapper, Mapping, pack_pieces
from pyiommufd.uapi.ioctls import ANYWHERE, PIECE

PAGE = mmap.PAGESIZE
READ, WRITE = 4, 2


class Space:
    """What has a `Mapper`, as an IOAS has."""

    def __init__(self) -> None:
        self.object = ioctls.new_object(ioctls.new_file())
        self.table: dict[DMAMapping, object] = {}
        self.mapper = Mapper(ioctls.address(self.object), self.object, self, self.table, DMAMapping)


@pytest.fixture
def space() -> Space:
    return Space()


def test_held_memory_cannot_be_resized() -> None:
    memory = bytearray(10)
    held = Held(memory, True)
    assert len(held) == 10
    with pytest.raises(BufferError):
        memory.append(1)
    del held
    memory.append(1)


def test_held_memory_of_a_cycle_is_collected() -> None:
    memory = bytearray(10)
    cycle: list[object] = [Held(memory, False)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    memory.append(1)


def test_a_memoryview_that_is_held_in_a_cycle() -> None:
    """CPython 3.11.8 and 3.12.2 cleared it first, and crashed when the memory was let go of."""
    memories = []
    for order in (1, -1):
        memory = bytearray(10)
        memories.append(memory)
        view = memoryview(memory)
        cycle: list[object] = [view, Held(view, False)][::order]
        cycle.append(cycle)
        del view, cycle
    gc.collect()
    for memory in memories:
        memory.append(1)


def test_held_is_at_the_address_of_the_memory() -> None:
    memory = DMABuffer(2 * PAGE)
    whole, rest = Held(memory, True), Held(memoryview(memory)[PAGE:], True)
    assert rest.address - whole.address == PAGE


@pytest.mark.parametrize(
    ("memory", "writeable", "error"),
    [
        ("text", False, TypeError),
        (7, False, TypeError),
        (None, True, TypeError),
        (b"bytes", True, BufferError),
        (memoryview(b"bytes").toreadonly(), True, BufferError),
        (memoryview(bytearray(16))[::2], True, BufferError),
    ],
    ids=["text", "int", "None", "bytes", "read-only", "with steps"],
)
def test_what_cannot_be_held(memory: object, writeable: bool, error: type[Exception], space: Space) -> None:
    with pytest.raises(error):
        Held(memory, writeable)
    with pytest.raises(error):
        space.mapper.map(memory, None, READ | (WRITE if writeable else 0))
    assert not space.table


def test_read_only_memory_is_held_for_reading() -> None:
    assert len(Held(b"bytes", False)) == 5


def test_a_cycle_through_held_memory_is_collected() -> None:
    class Owner(bytearray):
        held: Held

    owner = Owner(10)
    owner.held = Held(owner, True)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


def test_a_cycle_through_a_mapper_is_collected() -> None:
    space = Space()
    memory = bytearray(PAGE)
    space.table[DMAMapping(space.mapper)] = Held(memory, True)
    gone = weakref.ref(space)
    del space
    gc.collect()
    assert gone() is None
    memory.append(1)


def test_a_mapping_knows_its_address_space(space: Space) -> None:
    mapping = DMAMapping(space.mapper)
    assert getattr(mapping, "_ioas") is space  # noqa: B009 - it is no IOAS
    assert (mapping.iova, mapping.length, mapping._state) == (0, 0, 0)
    assert mapping._unmap() == 0
    piece = ioctls.piece_of(mapping)
    piece.iova = 0xFFFF_FFFF_FFFF_F000
    assert mapping.iova == 0xFFFF_FFFF_FFFF_F000
    with pytest.raises(AttributeError):
        vars(DMAMapping.__mro__[1])["iova"].__set__(mapping, 0)


@pytest.mark.parametrize("arguments", [(), (1,), (None,), ([],)], ids=repr)
def test_a_mapping_is_made_by_a_mapper_alone(arguments: tuple[Any, ...]) -> None:
    for kind in (Mapping, DMAMapping):
        with pytest.raises(TypeError, match="made by the methods of an IOAS"):
            kind(*arguments)


def test_a_mapper_has_a_table_and_makes_mappings() -> None:
    made = ioctls.new_object(ioctls.new_file())
    for table, kind in (([], DMAMapping), ({}, dict), ({}, None)):
        with pytest.raises(TypeError, match="a Mapper has a table"):
            Mapper(ioctls.address(made), made, None, table, kind)  # type: ignore[arg-type]


ATTEMPTS: list[Callable[[Space, DMABuffer], object]] = [
    lambda space, buffer: space.mapper.map(buffer, None, READ | WRITE),
    lambda space, buffer: space.mapper.map(buffer, PAGE, READ | WRITE),
    lambda space, buffer: space.mapper.map(memoryview(buffer)[PAGE:], None, READ),
]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_refused_memory_is_released_and_off_the_table(attempt: Callable[[Space, DMABuffer], Any], space: Space) -> None:
    buffer = DMABuffer(2 * PAGE)
    result, address, length = attempt(space, buffer)
    assert result == -errno.EBADF  # the file is closed
    assert address % PAGE == 0
    assert length in (PAGE, 2 * PAGE)
    assert not space.table
    buffer.close()  # BufferError, were it still held


def test_what_the_caller_holds_stays_held(space: Space) -> None:
    buffer = DMABuffer(PAGE)
    held = Held(buffer, True)
    assert space.mapper.map(held, None, READ | WRITE) == (-errno.EBADF, held.address, PAGE)
    with pytest.raises(BufferError):
        buffer.close()
    del held
    buffer.close()


@pytest.mark.parametrize("iova", [-1, 1 << 64, -(1 << 70), 1 << 200])
def test_an_iova_that_does_not_fit(iova: int, space: Space) -> None:
    buffer = DMABuffer(PAGE)
    with pytest.raises(ValueError, match=f"iova {iova} does not fit 64 bits"):
        space.mapper.map(buffer, iova, READ)
    with pytest.raises(ValueError, match=f"iova {iova} does not fit 64 bits"):
        space.mapper.map_file("a file", 0, 0, PAGE, iova, READ)
    assert not space.table
    buffer.close()


@pytest.mark.parametrize("iova", [1.5, "1", b""])
def test_an_iova_that_is_no_int(iova: Any, space: Space) -> None:
    buffer = DMABuffer(PAGE)
    with pytest.raises(TypeError):
        space.mapper.map(buffer, iova, READ)
    buffer.close()


@pytest.mark.parametrize("arguments", [(), (b"",), (b"", None), (b"", None, READ, 1)])
def test_a_wrong_number_of_arguments(arguments: tuple[Any, ...], space: Space) -> None:
    with pytest.raises(TypeError, match="takes 3 arguments"):
        space.mapper.map(*arguments)
    with pytest.raises(TypeError, match="takes 6 arguments"):
        space.mapper.map_file(*arguments)


@pytest.mark.parametrize("numbers", [(1 << 40, 0, PAGE), (0, -1, PAGE), (0, 0, 1 << 64), ("0", 0, PAGE)])
def test_a_file_whose_numbers_do_not_fit(numbers: tuple[Any, Any, Any], space: Space) -> None:
    with pytest.raises((OverflowError, TypeError)):
        space.mapper.map_file("a file", *numbers, None, READ)
    assert not space.table


def test_nothing_is_lost_by_refusals(space: Space) -> None:
    """No reference is left behind by what fails, ten thousand times."""
    buffer = DMABuffer(PAGE)
    counted: list[object] = [space.mapper, space.table, space, DMAMapping, Held, Mapper, buffer, None]

    def fail() -> None:
        space.mapper.map(buffer, None, READ)
        space.mapper.map_file("a file", 0, 0, PAGE, None, READ)
        for wrong in ((b"", None, WRITE), ("", None, READ), (buffer, -1, READ), (buffer, "", READ)):
            with pytest.raises((TypeError, ValueError, BufferError)):
                space.mapper.map(*wrong)
        DMAMapping(space.mapper)

    fail()
    gc.collect()
    before = list(map(sys.getrefcount, counted))
    for _ in range(10_000):
        fail()
    gc.collect()
    after = list(map(sys.getrefcount, counted))
    # None is everybody's.
    assert after[:-1] == before[:-1]
    assert abs(after[-1] - before[-1]) < 1000


# Pieces

SIZE = 16 * PAGE


def test_pieces_in_memory() -> None:
    given = [(0, PAGE, None), (PAGE, 2 * PAGE, 1 << 40), (SIZE, 0, None)][:2]
    assert list(piece_numbers(given, SIZE)) == [0, PAGE, ANYWHERE, 0, 0, PAGE, 2 * PAGE, 1 << 40, 0, 0]
    assert piece_numbers(tuple(given), SIZE) == piece_numbers(given, SIZE)


@pytest.mark.parametrize(
    "piece",
    [
        [0, PAGE, None],
        (True, PAGE, None),
        (0, PAGE, 0xFFFF_FFFF_FFFF_F000),
    ],
    ids=repr,
)
def test_pieces_that_are_left_to_python(piece: Any) -> None:
    memory = array("Q", bytes(8 * PIECE))
    assert not pack_pieces(memory, [piece], SIZE)
    offset, length, iova = piece
    assert list(piece_numbers([piece], SIZE))[:3] == [offset, length, ANYWHERE if iova is None else iova]


@pytest.mark.parametrize(
    "piece",
    [
        *[(), (0, PAGE), (0, PAGE, None, 1), (0, 0, None), (SIZE, PAGE, 0), (0, SIZE + 1, 0), (-1, PAGE, 0)],
        *[(0, -PAGE, 0), (0, PAGE, -1), (0, PAGE, 1 << 64), (1 << 70, PAGE, 0), (0, 1.0, 0), (None, PAGE, 0)],
        *[3, None, "abc"],
    ],
    ids=repr,
)
def test_wrong_pieces(piece: Any) -> None:
    assert not pack_pieces(array("Q", bytes(8 * PIECE)), [piece], SIZE)
    with pytest.raises((TypeError, ValueError)):
        piece_numbers([piece], SIZE)


def test_no_more_pieces_are_written_than_there_is_memory_for() -> None:
    one = array("Q", bytes(8 * PIECE))
    assert not pack_pieces(one, [(0, PAGE, None)] * 2, SIZE)
    assert not any(one)
    assert not pack_pieces(array("Q", bytes(8 * PIECE * 2)), [(0, PAGE, None)], SIZE)
    assert not pack_pieces(array("Q", bytes(8)), [(0, PAGE, None)], SIZE)
