"""Which pages devices have written to."""

from __future__ import annotations

from collections.abc import Iterator

from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.printable import counted
from pyiommufd.uapi import ioctls


class DirtyBitmap:
    """The pages of a range that devices have written to, as a bit for each. Made by `HWPT.dirty_bitmap`.

    A snapshot. `words` is its memory, for NumPy and the like without a copy:

        np.unpackbits(np.asarray(bitmap.words).view(np.uint8), count=bitmap.pages, bitorder="little")

    Args:
        iova: The first address of the range.
        length: Bytes, a multiple of the page size.
        page_size: Bytes that a bit stands for.
        memory: The bits, from the lowest of the first byte on, in whole words of 64.

    Attributes:
        iova: The first address of the range.
        length: Bytes.
        page_size: Bytes that a bit stands for.
    """

    __slots__ = ("_memory", "iova", "length", "page_size")

    def __init__(self, iova: int, length: int, page_size: int, memory: bytearray) -> None:
        self.iova = iova
        self.length = length
        self.page_size = page_size
        self._memory = memory

    @property
    def pages(self) -> int:
        """How many pages the range has, written to or not."""
        return self.length // self.page_size

    @property
    def words(self) -> memoryview:
        """The bits themselves, read-only: 64 pages a word, the first in the lowest bit."""
        return memoryview(self._memory).cast("Q").toreadonly()

    def count(self) -> int:
        """How many pages were written to."""
        return int.from_bytes(self._memory, "little").bit_count()

    def ranges(self) -> Iterator[IOVARange]:
        """What was written to, by address: contiguous pages as one range."""
        start, size, at = self.iova, self.page_size, 0
        while runs := ioctls.runs(self._memory, at):
            pairs = iter(runs)
            for first, last in zip(pairs, pairs, strict=True):
                yield IOVARange(start + first * size, start + (last + 1) * size - 1)
            at = runs[-1] + 1

    def __contains__(self, iova: int) -> bool:
        """Whether the page of an address was written to."""
        page = (iova - self.iova) // self.page_size
        return 0 <= page < self.pages and bool(self._memory[page // 8] >> page % 8 & 1)

    def __bool__(self) -> bool:
        """Whether any page was written to."""
        return bool(ioctls.runs(self._memory, most=1))

    def __repr__(self) -> str:
        where = IOVARange(self.iova, self.iova + self.length - 1)
        return f"<DirtyBitmap {where}: {self.count()} of {counted(self.pages, 'page')} of {self.page_size:#x} bytes>"
