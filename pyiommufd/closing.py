"""The base class of objects that are closed at the end of a `with` block, and steps that all have to be taken."""

from __future__ import annotations

from abc import abstractmethod

from pyiommufd.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self


class Closing:
    """A context manager that closes."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Release what it holds. Does nothing the second time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def call_each(calls: Iterator[Callable[[], object]]) -> None:
    """Call each of these in turn, also when one has raised; that goes on when all have been called."""
    for call in calls:
        try:
            call()
        except BaseException:
            call_each(calls)
            raise
