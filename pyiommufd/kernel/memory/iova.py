"""Ranges of I/O virtual addresses, and where in them there is room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyiommufd.printable import OneLine


@dataclass(frozen=True, slots=True, order=True, repr=False)
class IOVARange(OneLine):
    """A range of I/O virtual addresses.

    Attributes:
        start: The first address.
        last: The last address, inclusive.
    """

    start: int
    last: int

    def __contains__(self, iova: int) -> bool:
        return self.start <= iova <= self.last

    def __str__(self) -> str:
        return f"{self.start:#x}..{self.last:#x}"


def joined(ranges: Iterable[IOVARange]) -> tuple[IOVARange, ...]:
    """The same addresses by as few ranges as can be: the kernel maps across two that adjoin."""
    result: list[IOVARange] = []
    for range_ in sorted(ranges):
        start = result.pop().start if result and result[-1].last + 1 == range_.start else range_.start
        result.append(IOVARange(start, range_.last))
    return tuple(result)


def first_fit(
    allowed: Iterable[IOVARange], taken: Iterable[tuple[int, int]], length: int, below: int, alignment: int
) -> int | None:
    """The lowest free address for ``length`` bytes, the last of which is below ``below``; None: there is none.

    Never 0, which drivers take for "no address". taken: iova and length in bytes of each; alignment: a power of two.
    """
    occupied = sorted(taken)
    for range_ in sorted(allowed):
        place = -(-max(range_.start, alignment) // alignment) * alignment
        last = min(range_.last, below - 1)
        for start, size in occupied:
            if start + size <= place:
                continue
            if place + length <= start:
                break
            place = -(-(start + size) // alignment) * alignment
        if place + length - 1 <= last:
            return place
    return None
