"""What a process has mapped into an I/O address space, and the memory that this keeps."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyiommufd.iterables import pairs
from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.fast import mapped_within

if TYPE_CHECKING:
    from pyiommufd.kernel.memory.mapping import BaseMapping

OF_FILE = "a file"
"""What holds the memory of a mapping of a file: the kernel does, by the file."""
OF_DMA_BUF = "a dma-buf"
"""The same for a dma-buf: what it is of can go while it is mapped."""


class MappingTable(dict["BaseMapping", object]):
    """The mappings of an address space, each with the object that keeps its memory alive.

    Keyed by mapping, since an iova may belong to another mapping by now. Whether and where one is mapped is stored in
    the mapping itself, by the C code.
    """

    __slots__ = ()

    def ordered(self) -> tuple[BaseMapping, ...]:
        """The mappings by address, without those that the kernel is working on."""
        placed = [(next(mapping.ranges(), None), mapping) for mapping in list(self)]
        return tuple(mapping for place, mapping in sorted((p for p in placed if p[0]), key=operator.itemgetter(0)))

    def places(self) -> list[tuple[int, int]]:
        """Where something is mapped: iova and length in bytes, by address."""
        return sorted(place for mapping in list(self) for place in mapping.ranges())

    def covers(self, iova: int, length: int) -> bool:
        """Whether all of a range is mapped. No two mappings overlap, so their bytes there say it."""
        found, others = mapped_within(tuple(self), iova, length)
        return found + sum(other._mapped_within(iova, length) for other in others) == length

    def overlapping(self, iova: int, length: int) -> list[tuple[int, int]]:
        """The places that a range touches."""
        return [(start, size) for start, size in self.places() if start < iova + length and iova < start + size]

    def _touched(self, iova: int, length: int) -> list[BaseMapping]:
        """The mappings that a range touches. Does not hold their memory: another thread may unmap and close it."""
        return [
            mapping
            for mapping in list(self)
            if any(start < iova + length and iova < start + size for start, size in mapping.ranges())
        ]

    def memory_of(self, iova: int, length: int) -> tuple[object, ...]:
        """What holds the memory that is mapped within a range."""
        # No variable has it: the traceback of a signal handler's exception would keep it held.
        return tuple(filter(None, map(self.get, self._touched(iova, length))))

    def pieces(self, iova: int, length: int) -> tuple[list[BaseMapping], list[ioctls.Piece]]:
        """The mappings that a range touches, and those of their pieces that are mapped."""
        touched = self._touched(iova, length)
        return touched, [piece for mapping in touched for piece in mapping._mapped_pieces()]

    def forget_unmapped(self, touched: Iterable[BaseMapping]) -> None:
        """Drop mappings that were mapped and no longer are; one that is about to be mapped stays."""
        for mapping in touched:
            if mapping._gone():
                self.pop(mapping, None)

    def forget_left(self) -> None:
        """Drop those that a call has unmapped and, ended by a signal handler's exception, not dropped."""
        for mapping in list(self):
            if mapping._left():
                self.pop(mapping, None)

    def of_no_file(self) -> list[BaseMapping]:
        """Those that are not of memory by its file: of this process' memory, or of dma-bufs."""

        def of_file(memory: object) -> bool:
            return memory is OF_FILE or (isinstance(memory, tuple) and all(map(of_file, memory)))

        return [mapping for mapping, memory in pairs(self) if not of_file(memory)]

    def of_dma_buf(self, mapping: BaseMapping) -> bool:
        """Whether it is of a dma-buf, or a copy of what is, in part."""

        def is_one(memory: object) -> bool:
            return memory is OF_DMA_BUF or (isinstance(memory, tuple) and any(map(is_one, memory)))

        return is_one(self.get(mapping))

    def cut_by(self, iova: int, length: int) -> str:
        """The places that a range touches and does not hold whole, for a message: two at most."""
        end, places = iova + length, self.overlapping(iova, length)
        return ", ".join(str(IOVARange(at, at + size - 1)) for at, size in places if at < iova or at + size > end)

    def words(self, iova: int, length: int) -> str:
        """The places that a range touches, for a message."""
        taken = [str(IOVARange(start, start + size - 1)) for start, size in self.overlapping(iova, length)]
        return ", ".join(taken[:8]) + (" …" if len(taken) > 8 else "")
