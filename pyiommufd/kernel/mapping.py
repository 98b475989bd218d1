"""One piece of memory in an I/O address space."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from .ioas import IOAS


class DMAMapping:
    """Memory that the devices of an address space reach. Made by `IOAS.map`.

    A context manager that unmaps. Dropping it does not unmap: a device may be writing there. As long as it is
    mapped, the buffer is kept alive and cannot be closed or resized.

    Attributes:
        iova: Where devices see the memory: their address of its first byte.
        length: Bytes.
    """

    __slots__ = ("__weakref__", "_ioas", "iova", "length")

    # On the hot path: no check here of what IOAS.map has checked.
    def __init__(self, ioas: IOAS, iova: int, length: int) -> None:
        self._ioas = ioas
        self.iova = iova
        self.length = length

    def unmap(self) -> None:
        """Take the memory away from the devices (IOMMU_IOAS_UNMAP). Does nothing the second time.

        When this returns no device writes there any more, and the buffer is free.

        Raises:
            IoctlError: The kernel refused; it is still mapped.
            ForkedError: This is a forked child.
        """
        self._ioas.unmap_mapping(self)

    @property
    def mapped(self) -> bool:
        """Whether it is still mapped."""
        return self._ioas.holds(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmap()

    def __repr__(self) -> str:
        state = "" if self.mapped else ", unmapped"
        return f"<DMAMapping {self.iova:#x}..{self.iova + self.length - 1:#x}{state}>"
