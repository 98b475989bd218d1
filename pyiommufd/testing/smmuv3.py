"""What a VM has of its own for an SMMUv3: a stream table entry, a context descriptor, and stage-1 page tables.

For tests of code that uses `Device.alloc_viommu`: the few structures by which an SMMUv3 translates for one device, in
memory that its nesting parent maps. They are no model of an SMMU, and no more than a test takes: pages of 4 KiB,
addresses of 48 bits, one context descriptor, memory that caches may keep, little-endian as all that is read by an SMMU
without big-endian tables.

The layouts are those of the Arm System Memory Management Unit Architecture Specification, version 3 (Arm IHI 0070: 5.2,
stream table entry, 5.4, context descriptor), and of the Arm Architecture Reference Manual for A-profile (Arm DDI 0487,
D8.3: translation table descriptors of VMSAv8-64).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyiommufd.diagnose.smmuv3 import ABORT, BYPASS, STAGE_1, STE, Fields
from pyiommufd.kernel.memory.arguments import check_bool
from pyiommufd.kernel.memory.buffer import DMABuffer
from pyiommufd.kernel.pagetables.nested_data import SMMUv3Stage1, number
from pyiommufd.printable import OneLine

PAGE = 4096
"""Bytes of a page, and of a page table."""
ADDRESS_BITS = 48
"""Width of the addresses that devices send, and of those that page tables hold."""
DESCRIPTOR = 64
"""Bytes of a context descriptor; it starts on a multiple of them."""

# Of a context descriptor, those that are not 0 here.
_CD: Fields = {
    "T0SZ": (0, 0, 5), "IR0": (0, 8, 9), "OR0": (0, 10, 11), "SH0": (0, 12, 13), "EPD1": (0, 30, 30), "V": (0, 31, 31),
    "IPS": (0, 32, 34), "AA64": (0, 41, 41), "R": (0, 45, 45), "A": (0, 46, 46), "ASET": (0, 47, 47),
    "ASID": (0, 48, 63), "TTB0": (1, 4, 51), "MAIR0": (3, 0, 31),
}  # fmt: skip

# What caches may keep, and the SMMU reads with the processors' caches: write-back, inner shareable.
_WRITE_BACK, _INNER_SHAREABLE = 0b01, 0b11
_NORMAL_MEMORY = 0xFF  # an attribute of MAIR0: the same, of the memory that pages are

_VALID, _TABLE_OR_PAGE = 1 << 0, 1 << 1
_UNPRIVILEGED, _READ_ONLY = 1 << 6, 1 << 7  # AP[2:1]
_SHAREABLE = _INNER_SHAREABLE << 8
_ACCESSED, _NOT_GLOBAL = 1 << 10, 1 << 11
_ADDRESS = (1 << ADDRESS_BITS) - PAGE

_SHIFTS = (39, 30, 21, 12)
"""Where each level's nine bits of an address begin, from level 0 to 3."""


def abort_entry() -> SMMUv3Stage1:
    """A stream table entry by which all DMA is aborted (Config 0b000); no event tells of it."""
    return _entry(V=1, Config=ABORT)


def bypass_entry() -> SMMUv3Stage1:
    """A stream table entry without stage 1 (Config 0b100): addresses are those of the nesting parent."""
    return _entry(V=1, Config=BYPASS)


def stage1_entry(descriptor: int) -> SMMUv3Stage1:
    """A stream table entry with stage 1 (Config 0b101) by one context descriptor (S1CDMax 0).

    Args:
        descriptor: Where the `ContextDescriptor` is, in the nesting parent.

    Raises:
        ValueError, TypeError: That is no multiple of 64, has more than 48 bits, or is no int.
    """
    return _entry(
        V=1,
        Config=STAGE_1,
        S1ContextPtr=_aligned(descriptor, DESCRIPTOR, "descriptor") // DESCRIPTOR,
        S1CIR=_WRITE_BACK,
        S1COR=_WRITE_BACK,
        S1CSH=_INNER_SHAREABLE,
    )


@dataclass(frozen=True, slots=True, repr=False)
class ContextDescriptor(OneLine):
    """What stage 1 of a device goes by; ``bytes()`` of it are the 64 bytes that belong in memory.

    Faults abort the access, and each is an event. A descriptor that has changed counts once `SMMUv3Command.cfgi_cd` has
    invalidated it, and what was translated by it once that was, too.

    Attributes:
        table: Where the topmost page table is, in the nesting parent: `PageTables.iova`.
        asid: What translations are kept under, of 16 bits: see `SMMUv3Command.tlbi_asid`.
        valid: False: all DMA is aborted, and each access is an event C_BAD_CD.
    """

    table: int
    asid: int = 0
    valid: bool = True

    def __post_init__(self) -> None:
        _aligned(self.table, PAGE, "table")
        number(self.asid, 16, "asid")
        check_bool(self.valid, "valid")

    def __bytes__(self) -> bytes:
        words = _packed(
            _CD,
            8,
            T0SZ=64 - ADDRESS_BITS,
            IR0=_WRITE_BACK,
            OR0=_WRITE_BACK,
            SH0=_INNER_SHAREABLE,
            EPD1=1,  # addresses of the upper half have no tables
            V=self.valid,
            IPS=0b101,  # 48 bits, or what the SMMU has if that is less
            AA64=1,
            R=1,  # record faults
            A=1,  # abort what faults; an SMMU may have no other way (IDR0.TERM_MODEL)
            ASET=1,
            ASID=self.asid,
            TTB0=self.table >> 4,
            MAIR0=_NORMAL_MEMORY,
        )
        return struct.pack("<8Q", *words)


class PageTables:
    """Stage-1 page tables of four levels, in a buffer that the nesting parent maps.

    What is changed is written at once and counts at the SMMU once it has been invalidated: `SMMUv3Command.tlbi_va` and
    the like. An entry that was invalid need not be.

    Thread safety: one thread at a time changes them; a device may do DMA meanwhile.

    Args:
        memory: Whole pages, of which each is a table once it is needed. It takes four for the first page that is mapped
            and, far from others, up to three for a further one.
        iova: Where the nesting parent has the buffer, and so its topmost table.

    Attributes:
        memory: As given.
        iova: As given.

    Raises:
        ValueError, TypeError: That is no `DMABuffer`, no page boundary, or beyond 48 bits.
    """

    __slots__ = ("_used", "iova", "memory")

    def __init__(self, memory: DMABuffer, iova: int) -> None:
        if not isinstance(memory, DMABuffer):
            raise TypeError(f"page tables are in a DMABuffer, not in {type(memory).__name__}")
        self.memory = memory
        self.iova = _range(iova, len(memory) // PAGE, "iova")
        self._used = 0
        self._new_table()

    def map(self, address: int, iova: int, pages: int = 1, *, read_only: bool = False) -> None:
        """Have addresses lead to memory, whatever they led to before.

        Args:
            address: Of the first page, as the device sends it.
            iova: Where it is in the nesting parent.
            pages: How many pages of 4 KiB.
            read_only: Writes to them are refused: the event is F_PERMISSION.

        Raises:
            ValueError, TypeError: They are not on page boundaries, beyond 48 bits, or no such numbers.
            MemoryError: The buffer has no room for the tables that it takes. No address leads anywhere else then.
        """
        addresses = _pages(address, pages)
        iova = _range(iova, pages, "iova")
        flags = _VALID | _TABLE_OR_PAGE | _UNPRIVILEGED | _SHAREABLE | _ACCESSED | _NOT_GLOBAL
        flags |= _READ_ONLY if check_bool(read_only, "read_only") else 0
        places = [self._place(one, make=True) for one in addresses]
        for page, place in enumerate(places):
            self._write(place, iova + page * PAGE | flags)

    def unmap(self, address: int, pages: int = 1) -> None:
        """Have addresses lead nowhere: the event is F_TRANSLATION. The tables stay.

        Args:
            address: Of the first page, as the device sends it.
            pages: How many pages of 4 KiB.

        Raises:
            ValueError, TypeError: Not all of it is mapped, or they are no such numbers. Nothing has changed.
        """
        places = [self._place(one) for one in _pages(address, pages)]
        for place in places:
            self._write(place, 0)

    # Internal

    def _place(self, address: int, *, make: bool = False) -> int:
        """Where in the buffer the entry of a page is; its tables are made, or else it has to be mapped."""
        table = 0
        for shift in _SHIFTS[:-1]:
            place = _index(table, address, shift)
            if not (entry := self._read(place)) & _VALID:
                if not make:
                    raise _not_mapped(address)
                entry = self.iova + self._new_table() | _TABLE_OR_PAGE | _VALID
                self._write(place, entry)
            table = (entry & _ADDRESS) - self.iova
        place = _index(table, address, _SHIFTS[-1])
        if not make and not self._read(place) & _VALID:
            raise _not_mapped(address)
        return place

    def _new_table(self) -> int:
        """Where in the buffer a table is that has no valid entry."""
        start = self._used
        if start + PAGE > len(self.memory):
            raise MemoryError(f"all {len(self.memory) // PAGE} pages of {self.memory!r} are page tables: give more")
        self.memory[start : start + PAGE] = bytes(PAGE)
        self._used += PAGE
        return start

    def _read(self, place: int) -> int:
        return int.from_bytes(self.memory[place : place + 8], "little")

    def _write(self, place: int, entry: int) -> None:
        self.memory[place : place + 8] = entry.to_bytes(8, "little")

    def __repr__(self) -> str:
        return f"<PageTables at {self.iova:#x}, {self._used // PAGE} of {len(self.memory) // PAGE} pages used>"


def _entry(**values: int) -> SMMUv3Stage1:
    return SMMUv3Stage1(_packed(STE, 2, **values))


def _packed(fields: Fields, count: int, **values: int) -> list[int]:
    """So many words, with values in some of the fields."""
    words = [0] * count
    for name, value in values.items():
        word, first, _ = fields[name]
        words[word] |= value << first
    return words


def _index(table: int, address: int, shift: int) -> int:
    """Where the entry of an address is, in a table that starts there."""
    return table + (address >> shift & 0x1FF) * 8


def _pages(address: int, pages: int) -> range:
    """The addresses of some pages; checked."""
    address = _range(address, pages, "address")
    return range(address, address + pages * PAGE, PAGE)


def _range(start: int, pages: int, name: str) -> int:
    """The start of some pages, all below 48 bits; checked."""
    if not number(pages, 64, "pages"):
        raise ValueError("pages is at least 1")
    start = _aligned(start, PAGE, name)
    if start + pages * PAGE > 1 << ADDRESS_BITS:
        raise ValueError(f"{pages} pages at {name} {start:#x} end beyond {ADDRESS_BITS} bits")
    return start


def _aligned(value: int, unit: int, name: str) -> int:
    """A number of 48 bits on a boundary; checked."""
    value = number(value, ADDRESS_BITS, name)
    if value % unit:
        raise ValueError(f"{name} {value:#x} is not on a boundary of {unit} bytes")
    return value


def _not_mapped(address: int) -> ValueError:
    return ValueError(f"nothing is mapped at {address:#x}")
