"""Memory in an I/O address space: one piece, or many as one."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pyiommufd.errors import IOMMUFDError
from pyiommufd.kernel.memory.page_sizes import page_sizes
from pyiommufd.printable import counted
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.fast import Held, Mapper, Mapping
from pyiommufd.uapi.ioctls import PIECE, Piece

if TYPE_CHECKING:
    from pyiommufd.kernel.memory.ioas import IOAS

PIECES_A_CALL = 1024
"""Pieces per map or unmap call at most, so that a signal is handled within milliseconds."""


class BaseMapping(ABC):
    """What the kinds of mappings have in common: the interface that `MappingTable` uses, and unmapping by ``with``."""

    __slots__ = ()

    _ioas: IOAS

    @abstractmethod
    def unmap(self) -> None:
        """Take the memory away from the devices."""

    @abstractmethod
    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where it is: iova and length in bytes of each piece that is mapped."""

    @abstractmethod
    def _mapped_pieces(self) -> list[Piece]:
        """Those of its pieces that are mapped."""

    def _mapped_within(self, iova: int, length: int) -> int:
        """How many bytes of a range it is in."""
        end = iova + length
        return sum(max(0, min(end, start + size) - max(iova, start)) for start, size in self.ranges())

    @abstractmethod
    def _gone(self) -> bool:
        """Whether it is not mapped, nor going to be."""

    def _left(self) -> bool:
        """Whether it is gone, and in the table all the same. One that C unmaps it drops by the same call."""
        return False

    @property
    def revoked(self) -> bool:
        """Whether it is of a dma-buf that was revoked: devices do not reach it any more, and their DMA there faults.

        The dma-buf of a device (`Region.export_dma_buf`) is revoked by a reset or hot reset of that device, also where
        that was asked of another device, by low power, while its memory decode is off, and when it is closed; in
        whatever process that was done. It is for good: only unmapped and mapped anew is it reached again. Other
        mappings of the address space are not affected.

        The kernel is asked each time. What is mapped is shown by IOMMU_IOAS_NOIOMMU_GET_PA, which refuses a revoked
        mapping. False for memory, without asking, and once it is unmapped.

        Raises:
            UnsupportedError: This kernel was built without support for devices without an IOMMU, or is older than 7.3.
            AccessDeniedError: It takes CAP_SYS_RAWIO.
            ClosedError, ForkedError: As for `IOAS.map`.
        """
        if not self._ioas._table.of_dma_buf(self):
            return False
        return any(self._ioas._revoked(iova) for iova, _ in self.ranges())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmap()


class DMAMapping(Mapping, BaseMapping):
    """A mapping: memory that the devices of an address space reach. Made by `IOAS.map`, `map_file` and `copy_from`.

    A context manager that unmaps. Dropping it does not unmap: a device may be writing there. As long as it is
    mapped, the buffer is kept alive and cannot be closed or resized.

    Thread safety: `unmap` may be called from any thread; whoever calls it second waits until it is unmapped.
    """

    __slots__ = ("__weakref__",)

    def unmap(self) -> None:
        """Take the memory away from the devices (IOMMU_IOAS_UNMAP). Does nothing the second time.

        When this returns no device reaches it any more, and the buffer is free.

        Raises:
            IoctlError: The kernel refused; it is still mapped.
            ForkedError: This is a forked child.
        """
        if result := self._unmap():
            self._ioas._not_unmapped(self, -result)

    @property
    def mapped(self) -> bool:
        """Whether it is still mapped."""
        return self._state != 0 and self in self._ioas._table

    def _mapped_pieces(self) -> list[Piece]:
        return [ioctls.piece_of(self)] if self._state else []

    def _gone(self) -> bool:
        return not self._state

    @property
    def page_sizes(self) -> dict[int, int]:
        """Bytes of the whole buffer by the size of the pages behind it in this process, the largest first.

        Such as ``{2097152: 1 << 30}``. Small pages take longer to pin and fill the IOMMU's TLB sooner:
        ``DMABuffer(size, huge_page_size=2 << 20)``.

        The kernel is asked each time (PAGEMAP_SCAN; since Linux 6.7), and looks at each page, which of a GiB in small
        ones takes tens of milliseconds. Huge are those of hugetlbfs and transparent ones. Pages that have not been
        faulted in yet, as before the first attach, are not counted. Empty where it is not known: for what is mapped
        by its file, for a copy, and once it is unmapped. What the IOMMU makes of the pages is not shown: it combines
        contiguous ones (`IOAS.huge_pages`).

        Raises:
            UnsupportedError: The kernel is older.
            IoctlError: The kernel refused.
        """
        held = self._ioas._table.get(self)
        return page_sizes(held.address, len(held)) if isinstance(held, Held) else {}

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where it is: iova and length in bytes of each piece that is mapped."""
        if self.mapped:
            yield self.iova, self.length

    def __repr__(self) -> str:
        state = "" if self.mapped else ", unmapped"
        if self._ioas._table.of_dma_buf(self):
            state += " of a dma-buf"
            with contextlib.suppress(IOMMUFDError):
                state += ", revoked" if self.revoked else ""
        return f"<DMAMapping {self.iova:#x}..{self.iova + self.length - 1:#x}{state}>"


class _Pieces:
    """Pieces in one memory: offset, length, iova and state of each, one after the other, as the C code takes them."""

    __slots__ = ("c", "making", "numbers")

    def __init__(self, numbers: array[int]) -> None:
        self.numbers = numbers
        self.c = ioctls.pieces_of(numbers)
        self.making = True  # more of them may be mapped, whatever has become of those that are

    def any_mapped(self) -> bool:
        """Whether one of them is mapped."""
        return ioctls.any_mapped(self.c, len(self))

    def __len__(self) -> int:
        return len(self.numbers) // PIECE

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where those are that are mapped: iova and length in bytes."""
        numbers = self.numbers
        # The states first: a thread that maps writes where a piece is, and only then that it is mapped.
        states = numbers[3::PIECE]
        for length, iova, state in zip(numbers[1::PIECE], numbers[2::PIECE], states, strict=True):
            if state:
                yield iova, length


class _InPieces(BaseMapping):
    """What `DMAMappings` and `MappingInPieces` have in common."""

    __slots__ = ()

    _pieces: _Pieces

    def _made(self) -> None:
        """No more pieces will be mapped. Those that were may be unmapped again, by another thread."""
        self._pieces.making = False
        self._ioas._table.forget_unmapped((self,))

    def unmap(self) -> None:
        """Take all pieces away from the devices (IOMMU_IOAS_UNMAP for each). Does nothing the second time.

        Raises:
            IoctlError: The kernel refused; the pieces from that one on are still mapped, and are what is left here.
            ForkedError: This is a forked child.
        """
        ioas, count = self._ioas, len(self._pieces)
        if self._gone() and self not in ioas._table:
            return
        try:
            for start in range(0, count, PIECES_A_CALL):
                part = min(PIECES_A_CALL, count - start)
                if result := ioctls.ioas_unmap_many(self._pieces.c, start, part):
                    ioas._not_unmapped(self, -result)
                    return
        finally:
            ioas._table.forget_unmapped((self,))

    @property
    def mapped(self) -> bool:
        """Whether any of it is still mapped."""
        return self._pieces.any_mapped() and self in self._ioas._table

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where it is: iova and length in bytes of each piece that is mapped."""
        if self in self._ioas._table:
            yield from self._pieces.ranges()

    def _places(self) -> list[tuple[int, int]]:
        """Iova and length in bytes of each piece that is mapped; of all where none is, any more or yet."""
        numbers = self._pieces.numbers
        return list(self._pieces.ranges()) or list(zip(numbers[2::PIECE], numbers[1::PIECE], strict=True))

    def _mapped_pieces(self) -> list[Piece]:
        states = self._pieces.numbers[3::PIECE]
        return [ioctls.piece_at(self._pieces.c, at) for at, state in enumerate(states) if state]

    def _gone(self) -> bool:
        return not self._pieces.making and not self._pieces.any_mapped()

    def _left(self) -> bool:
        return self._gone()

    def _mapped_within(self, iova: int, length: int) -> int:
        return ioctls.mapped_within(self._pieces.c, len(self._pieces), iova, length)


class DMAMappings(_InPieces):
    """A mapping of many pieces of one buffer, unmapped as one. Made by `IOAS.map_many`.

    A context manager that unmaps; as for `DMAMapping`, dropping it does not.

    Thread safety: `unmap` may be called from any thread; whoever calls it second waits until all is unmapped.
    """

    __slots__ = ("__weakref__", "_ioas", "_pieces")

    def __init__(self, ioas: IOAS, numbers: array[int]) -> None:
        self._ioas = ioas
        self._pieces = _Pieces(numbers)

    @property
    def iovas(self) -> tuple[int, ...]:
        """Where devices see each piece, in the order in which they were given; once unmapped, where they saw them."""
        return tuple(iova for iova, _ in self._places())

    @property
    def length(self) -> int:
        """Bytes of all pieces together."""
        return sum(length for _, length in self._places())

    def __len__(self) -> int:
        return len(self._places())

    def __repr__(self) -> str:
        state = "" if self.mapped else ", unmapped"
        return f"<DMAMappings of {counted(len(self), 'piece')}, {self.length:#x} bytes{state}>"


class MappingInPieces(_InPieces, DMAMapping):
    """A mapping of several pieces to the kernel, of which `IOAS.unmap` can unmap each.

    By `IOAS.copy_from`: one for each mapping that it was copied from. By `IOAS.map` with ``progress``: in a row.
    """

    __slots__ = ("_pieces",)

    def __init__(self, mapper: Mapper, numbers: array[int]) -> None:  # noqa: ARG002 - of the base's __new__
        self._pieces = _Pieces(numbers)

    @property
    def iova(self) -> int:
        """Where devices see the memory, or what of it is mapped: their address of its first byte."""
        return self._places()[0][0]

    @property
    def length(self) -> int:
        """Bytes that are mapped; once unmapped, those that were."""
        return sum(length for _, length in self._places())
