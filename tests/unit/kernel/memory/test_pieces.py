"""Pieces of mappings, while another thread maps them."""

from __future__ import annotations

import mmap
from array import array
from typing import Any

import pytest

from pyiommufd.kernel.memory.mapping import _Pieces
from pyiommufd.uapi.ioctls import ANYWHERE, PIECE

PAGE, IOVA, LIVE = mmap.PAGESIZE, 0x10000, 1


class Meanwhile(array):  # type: ignore[type-arg]
    """Numbers of a piece that is mapped after so many reads."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.reads -= 1
        if self.reads == 0:
            self[2:4] = array("Q", (IOVA, LIVE))
        return found


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_a_piece_is_where_it_is_mapped(reads: int) -> None:
    numbers = Meanwhile("Q", (0, PAGE, ANYWHERE, 0, 0))
    assert len(numbers) == PIECE
    pieces = _Pieces(numbers)
    numbers.reads = reads
    assert set(pieces.ranges()) <= {(IOVA, PAGE)}
    assert list(pieces.ranges()) == [(IOVA, PAGE)]
