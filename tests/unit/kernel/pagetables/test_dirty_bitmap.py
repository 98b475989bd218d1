"""Bitmaps of dirty pages, against a list of page numbers."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiommufd.kernel.pagetables.dirty_bitmap import DirtyBitmap
from pyiommufd.uapi import ioctls

START = 1 << 30


def bitmap_of(written: set[int], pages: int, page_size: int) -> DirtyBitmap:
    memory = bytearray(-(-pages // 64) * 8)
    for page in written:
        memory[page // 8] |= 1 << page % 8
    return DirtyBitmap(START, pages * page_size, page_size, memory)


@given(st.sets(st.integers(0, 299)), st.sampled_from([1, 2048, 4096, 2 << 20]))
def test_says_what_was_written(written: set[int], page_size: int) -> None:
    bitmap = bitmap_of(written, 300, page_size)
    assert bitmap.count() == len(written)
    assert bool(bitmap) == bool(written)
    assert {page for page in range(300) if START + page * page_size in bitmap} == written
    inside = {page for page in range(300) if START + (page + 1) * page_size - 1 in bitmap}
    assert inside == written
    ranges = list(bitmap.ranges())
    spans = [((one.start - START) // page_size, (one.last + 1 - START) // page_size) for one in ranges]
    pages = [page for start, end in spans for page in range(start, end)]
    assert pages == sorted(written)
    # Never two that touch.
    assert all(before.last + 1 < after.start for before, after in itertools.pairwise(ranges))


def runs_of(memory: bytearray, at: int) -> list[int]:
    """The first and the last bit of each run from a bit on, bit by bit."""
    found: list[int] = []
    for bit in range(at, 8 * len(memory)):
        if memory[bit // 8] >> bit % 8 & 1:
            if found and found[-1] == bit - 1:
                found[-1] = bit
            else:
                found += [bit, bit]
    return found


WORDS = st.sampled_from([0, 1, 1 << 63, (1 << 64) - 1, (1 << 63) - 1, (1 << 64) - 2]) | st.integers(0, (1 << 64) - 1)


@given(st.lists(WORDS, max_size=9), st.integers(0, 600), st.integers(1, 5))
def test_runs_are_those_that_are_found_bit_by_bit(words: list[int], at: int, most: int) -> None:
    memory = bytearray(struct.pack(f"={len(words)}Q", *words))
    assert ioctls.runs(memory, at, most) == runs_of(memory, at)[: 2 * most]
    assert ioctls.runs(memory, at) == runs_of(memory, at)


def test_more_ranges_than_are_looked_for_at_once() -> None:
    written = {page for page in range(10_000) if page % 3}
    ranges = list(bitmap_of(written, 10_000, 4096).ranges())
    assert [((one.start - START) // 4096, one.last + 1 - one.start) for one in ranges] == [
        (page, 8192) for page in range(1, 9_999, 3)
    ]


def test_what_is_outside_is_not_in_it() -> None:
    bitmap = bitmap_of({0, 9}, 10, 4096)
    assert START - 1 not in bitmap
    assert START + 10 * 4096 not in bitmap
    assert START + 10 * 4096 - 1 in bitmap


def test_words_are_the_memory_itself_and_read_only() -> None:
    bitmap = bitmap_of({1, 64}, 65, 4096)
    assert bitmap.words.tolist() == [2, 1]
    with pytest.raises(TypeError):
        bitmap.words[0] = 0
    assert repr(bitmap) == "<DirtyBitmap 0x40000000..0x40040fff: 2 of 65 pages of 0x1000 bytes>"
    assert "0 of 1 page of" in repr(DirtyBitmap(0, 0x1000, 0x1000, bytearray(8)))
