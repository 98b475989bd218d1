"""What an iommufd is said to do, in a few lines of Python: what the real one is compared with, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

Page = tuple[int, int]
"""A page of memory: the number of its buffer, and its own in that."""


@dataclass
class Area:
    """What the kernel keeps as one mapping: contiguous iovas, in pages, with a page of memory for each."""

    start: int
    memory: tuple[Page, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.memory)


@dataclass
class Table:
    """A page table: the automatic one of an address space, or an explicit one. Tracks what is written if asked to."""

    tracks: bool = False
    on: bool = False
    dirty: set[int] = field(default_factory=set)


@dataclass
class Space:
    """An address space."""

    areas: list[Area] = field(default_factory=list)
    tables: dict[int, Table] = field(default_factory=dict)

    def touching(self, start: int, count: int) -> list[Area]:
        return sorted((a for a in self.areas if a.start < start + count and start < a.end), key=lambda a: a.start)

    def memory(self, start: int, count: int) -> tuple[Page, ...] | None:
        """What is mapped there; None where a page is not."""
        found = {a.start + n: page for a in self.areas for n, page in enumerate(a.memory)}
        wanted = [found.get(page) for page in range(start, start + count)]
        return None if None in wanted else tuple(page for page in wanted if page is not None)

    def map(self, area: Area) -> bool:
        """Whether it could be mapped: the addresses were free."""
        if self.touching(area.start, len(area.memory)):
            return False
        self.areas.append(area)
        return True

    def unmap(self, start: int, count: int) -> int | None:
        """Pages that were unmapped; None where nothing was there or the range cuts an area, after what was before."""
        done = 0
        found = self.touching(start, count)
        for area in found:
            if area.start < start or area.end > start + count:
                return None
            self.remove(area)
            done += len(area.memory)
        return done if found else None

    def remove(self, area: Area) -> None:
        self.areas.remove(area)
        for table in self.tables.values():
            table.dirty -= set(range(area.start, area.end))

    def copy(self, source: Space, start: int, count: int, at: int) -> str | None:
        """Copy a range: what is wrong with it, or None."""
        if source.memory(start, count) is None:
            return "hole"
        if self.touching(at, count):
            return "taken"
        for area in source.touching(start, count):
            first, last = max(area.start, start), min(area.end, start + count)
            self.areas.append(Area(at + first - start, area.memory[first - area.start : last - area.start]))
        return None

    def write(self, table: Table, pages: set[int]) -> None:
        """Devices write to pages; what is not mapped is out of their reach."""
        table.dirty |= pages & {page for area in self.areas for page in range(area.start, area.end)}
