"""The base class of objects that are closed at the end of a `with` block."""

from __future__ import annotations

from abc import abstractmethod

from pyiommufd.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
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
