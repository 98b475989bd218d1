"""What a process has mapped into an I/O address space, and the memory that this keeps."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .iova import IOVARange

if TYPE_CHECKING:
    from .mapping import DMAMapping, DMAMappings

OF_FILE = "a file"
"""What holds the memory of a mapping of a file: the kernel does, by the file."""


class MappingTable(dict["DMAMapping | DMAMappings", object]):
    """Each mapping with what holds its memory.

    By mapping and not by iova: taking one out is then a single step that says whether it was still there, also
    where its iova has another mapping by now. That step is atomic, so that two threads cannot unmap one mapping
    twice.
    """

    __slots__ = ()

    def ordered(self) -> tuple[DMAMapping | DMAMappings, ...]:
        """The mappings by address, without those that the kernel is working on."""
        placed = [(next(mapping.ranges(), None), mapping) for mapping in list(self)]
        return tuple(mapping for place, mapping in sorted((p for p in placed if p[0]), key=operator.itemgetter(0)))

    def places(self) -> list[tuple[int, int]]:
        """Where something is mapped: iova and length in bytes, by address."""
        return sorted(place for mapping in list(self) for place in mapping.ranges())

    def overlapping(self, iova: int, length: int) -> list[tuple[int, int]]:
        """The places that a range touches."""
        return [(start, size) for start, size in self.places() if start < iova + length and iova < start + size]

    def memory_of(self, iova: int, length: int) -> tuple[object, ...]:
        """What holds the memory that is mapped within a range."""
        return tuple(
            memory
            for mapping, memory in list(self.items())
            if any(start < iova + length and iova < start + size for start, size in mapping.ranges())
        )

    def forget(self, before: Iterable[DMAMapping | DMAMappings], iova: int, length: int) -> None:
        """Drop what the kernel has unmapped within a range.

        Args:
            before: What was here before it did: another thread may have mapped something since.
            iova: The first address.
            length: Bytes.
        """
        for mapping in before:
            if mapping.drop(iova, length):
                self.pop(mapping, None)

    def forget_up_to_cut(self, before: Iterable[DMAMapping | DMAMappings], iova: int, length: int) -> None:
        """Drop what is gone after the kernel refused to unmap a range.

        It goes upwards and stops at the first mapping that the range cuts (Linux 7.3, iopt_unmap_iova_range).
        """
        for start, size in self.overlapping(iova, length):
            if start < iova or start + size > iova + length:
                self.forget(before, iova, start - iova)
                return

    def of_memory(self) -> list[DMAMapping | DMAMappings]:
        """Those that are of this process' memory, and not of a file."""

        def of_file(memory: object) -> bool:
            return memory is OF_FILE or (isinstance(memory, tuple) and all(map(of_file, memory)))

        return [mapping for mapping, memory in list(self.items()) if not of_file(memory)]

    def words(self, iova: int, length: int) -> str:
        """The places that a range touches, for a message."""
        taken = [str(IOVARange(start, start + size - 1)) for start, size in self.overlapping(iova, length)]
        return ", ".join(taken[:8]) + (" …" if len(taken) > 8 else "")
