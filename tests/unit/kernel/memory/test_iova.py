"""Finding room among I/O virtual addresses, against a search that tries every page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyiommufd.kernel.memory.iova import IOVARange, first_fit, joined

PAGES = 40
pages = st.integers(0, PAGES - 1)


def by_trying(allowed: list[IOVARange], taken: list[tuple[int, int]], length: int, below: int, unit: int) -> int | None:
    for place in range(unit, PAGES, unit):
        last = place + length - 1
        if last >= below or not any(one.start <= place and last <= one.last for one in allowed):
            continue
        if all(start + size <= place or last < start for start, size in taken):
            return place
    return None


@given(
    st.lists(st.tuples(pages, pages), max_size=3),
    st.lists(st.tuples(pages, st.integers(1, 6)), max_size=6),
    st.integers(1, 6),
    st.integers(0, PAGES),
    st.sampled_from([1, 2, 4]),
)
def test_lowest_place(
    bounds: list[tuple[int, int]], wanted: list[tuple[int, int]], length: int, below: int, unit: int
) -> None:
    # Neither allowed ranges nor mappings overlap: the kernel sees to both.
    allowed: list[IOVARange] = []
    for low, high in (sorted(pair) for pair in bounds):
        if all(high + 1 < one.start or one.last + 1 < low for one in allowed):
            allowed.append(IOVARange(low, high))
    taken: list[tuple[int, int]] = []
    for start, size in wanted:
        if all(start + size <= at or at + many <= start for at, many in taken):
            taken.append((start, size))
    assert first_fit(allowed, taken, length, below, unit) == by_trying(allowed, taken, length, below, unit)


def test_range() -> None:
    one = IOVARange(0x1000, 0x1FFF)
    assert 0x1000 in one
    assert 0x1FFF in one
    assert 0x2000 not in one
    assert str(one) == "0x1000..0x1fff"


def test_ranges_that_adjoin_are_one() -> None:
    ranges = [IOVARange(8, 9), IOVARange(0, 3), IOVARange(4, 6), IOVARange(10, 10)]
    assert joined(ranges) == (IOVARange(0, 6), IOVARange(8, 10))
    assert joined([]) == ()
