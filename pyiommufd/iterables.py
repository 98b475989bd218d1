"""Arguments that are gone through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def iterate(argument: Iterable[_T], expected: str) -> Iterator[_T]:
    """An iterator over an argument that holds several things.

    A memoryview is refused: to iterate over one of several dimensions is a NotImplementedError, and over a released one
    leaves CPython 3.11 with an exception set.

    Args:
        argument: What was given.
        expected: What should have been, as a sentence for the error.

    Raises:
        TypeError: It is a memoryview, or not iterable.
    """
    if isinstance(argument, memoryview):
        raise TypeError(expected)
    return iter(argument)
