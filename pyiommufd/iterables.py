"""Iteration over arguments that hold several things, and over what others change meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

_T = TypeVar("_T")
_K = TypeVar("_K")


def iterate(argument: Iterable[_T], expected: str) -> Iterator[_T]:
    """An iterator over an argument that holds several things.

    A memoryview of several dimensions, or a released one, is refused: to iterate over the first is a
    NotImplementedError, and over the second leaves CPython 3.11 with an exception set.

    Args:
        argument: What was given.
        expected: What should have been, as a sentence for the error.

    Raises:
        TypeError: It is such a memoryview, or not iterable.
    """
    if isinstance(argument, memoryview) and not _is_iterable(argument):
        raise TypeError(expected)
    try:
        return iter(argument)
    except TypeError as error:
        raise TypeError(f"{expected}, not {type(argument).__name__}") from error


def _is_iterable(memory: memoryview) -> bool:
    try:
        return memory.ndim == 1
    except ValueError:  # it is released
        return False


def pairs(table: Mapping[_K, _T]) -> list[tuple[_K, _T]]:
    """The keys and values of a dict as they are at one moment, though finalizers may change it.

    ``list(table.items())`` makes tuples, and so may run the garbage collector, before CPython 3.12, and with it
    finalizers, which may change the dict and let other threads do so; it then raises RuntimeError.
    """
    while True:
        with contextlib.suppress(RuntimeError):
            return list(table.items())
