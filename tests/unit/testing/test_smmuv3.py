"""Stream table entries, context descriptors and page tables: the bits in memory, by the numbers of Arm's documents."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from pyiommufd import DMABuffer
from pyiommufd.diagnose.smmuv3 import ste_faults
from pyiommufd.testing.smmuv3 import ContextDescriptor, PageTables, abort_entry, bypass_entry, stage1_entry

PAGE = 4096
BASE = 0x10_0000
"""Where the tables are, as the SMMU addresses them."""
PAGES = 8


@pytest.fixture
def memory() -> Iterator[DMABuffer]:
    with DMABuffer(PAGES * PAGE) as memory:
        yield memory


@pytest.fixture
def tables(memory: DMABuffer) -> PageTables:
    return PageTables(memory, BASE)


def entry(memory: DMABuffer, table: int, index: int) -> int:
    (value,) = struct.unpack_from("<Q", memory, table * PAGE + index * 8)
    assert isinstance(value, int)
    return value


def set_entries(memory: DMABuffer) -> dict[int, dict[int, int]]:
    """The entries that are not 0, by page and index."""
    words = struct.unpack(f"<{PAGES * 512}Q", memory[:])
    found: dict[int, dict[int, int]] = {}
    for place, word in enumerate(words):
        if word:
            found.setdefault(place // 512, {})[place % 512] = word
    return found


# Stream table entries


def test_entries_that_do_not_translate() -> None:
    assert abort_entry().ste == (0b0001, 0)
    assert bypass_entry().ste == (0b1001, 0)


def test_entry_with_stage_1() -> None:
    # V, Config 0b101, the pointer; write-back (S1CIR, S1COR) and inner shareable (S1CSH).
    assert stage1_entry(0x0000_8765_4321_0040).ste == (0x8765_4321_0040 | 0b1011, 0b11_01_01_00)
    for made in (abort_entry(), bypass_entry(), stage1_entry(0x1000)):
        assert ste_faults(made.ste) == []


# Context descriptors


def test_descriptor() -> None:
    words = struct.unpack("<8Q", bytes(ContextDescriptor(0x0000_ABCD_EF01_2000, asid=0x1234)))
    assert words[0] & 0x3F == 16  # T0SZ: addresses of 64 - 16 bits
    assert words[0] >> 6 & 0b11 == 0  # TG0: 4 KiB
    assert words[0] >> 8 & 0b111111 == 0b11_01_01  # SH0, OR0, IR0
    assert words[0] >> 14 & 0b11 == 0  # EPD0: table 0 is used; ENDI: little-endian
    assert words[0] >> 16 & 0x7FFF == 1 << 14  # EPD1 alone of what is of table 1
    assert words[0] >> 31 & 1 == 1  # V
    assert words[0] >> 32 & 0b111 == 0b101  # IPS
    assert words[0] >> 35 & 0x1FFF == 0b1110001000000  # ASET, A, R, and AA64
    assert words[0] >> 48 == 0x1234
    assert words[1:] == (0x0000_ABCD_EF01_2000, 0, 0xFF, 0, 0, 0, 0)


def test_descriptor_that_is_not_valid() -> None:
    valid, invalid = (bytes(ContextDescriptor(BASE, asid=5, valid=valid)) for valid in (True, False))
    assert int.from_bytes(valid, "little") ^ int.from_bytes(invalid, "little") == 1 << 31
    assert len(valid) == 64


# Page tables


def test_a_page_takes_a_table_of_each_level(memory: DMABuffer, tables: PageTables) -> None:
    address = 0x0102_0304_5000 | 1 << 47
    tables.map(address, 0x9_8765_4000)
    indices = [address >> shift & 511 for shift in (39, 30, 21, 12)]
    page = 0x9_8765_4000 | 0b11 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11  # AP[1], SH, AF, nG; AttrIndx 0
    assert set_entries(memory) == {
        0: {indices[0]: BASE + 1 * PAGE | 0b11},
        1: {indices[1]: BASE + 2 * PAGE | 0b11},
        2: {indices[2]: BASE + 3 * PAGE | 0b11},
        3: {indices[3]: page},
    }
    assert (tables.memory, tables.iova) == (memory, BASE)
    assert repr(tables) == "<PageTables at 0x100000, 4 of 8 pages used>"


def test_read_only_is_a_bit_of_the_page(memory: DMABuffer, tables: PageTables) -> None:
    tables.map(0, 0x5000)
    writeable = entry(memory, 3, 0)
    tables.map(0, 0x5000, read_only=True)
    assert entry(memory, 3, 0) ^ writeable == 1 << 7  # AP[2]


def test_pages_across_tables(memory: DMABuffer, tables: PageTables) -> None:
    first = (1 << 30) - 2 * PAGE  # the last of a table, and the first of one under another entry of level 1
    tables.map(first, 0xF000, pages=4)
    found = [entry(memory, table, index) & ~0xFFF for table, index in ((3, 510), (3, 511), (5, 0), (5, 1))]
    assert found == [0xF000, 0x10000, 0x11000, 0x12000]
    assert entry(memory, 1, 0) == BASE + 2 * PAGE | 0b11
    assert entry(memory, 1, 1) == BASE + 4 * PAGE | 0b11


def test_the_highest_addresses(memory: DMABuffer, tables: PageTables) -> None:
    last = (1 << 48) - PAGE
    tables.map(last, last)
    assert entry(memory, 3, 511) >> 12 & (1 << 36) - 1 == (1 << 36) - 1


def test_mapping_anew_and_unmapping(memory: DMABuffer, tables: PageTables) -> None:
    tables.map(0x4000, 0x1000, pages=3)
    tables.map(0x5000, 0x9000)
    assert [entry(memory, 3, index) & ~0xFFF for index in (4, 5, 6)] == [0x1000, 0x9000, 0x3000]
    tables.unmap(0x4000, pages=2)
    assert set_entries(memory)[3].keys() == {6}
    tables.map(0x4000, 0x1000)
    assert repr(tables) == "<PageTables at 0x100000, 4 of 8 pages used>"  # the same tables


def test_memory_that_was_used_before(memory: DMABuffer) -> None:
    memory[:] = b"\xff" * len(memory)
    tables = PageTables(memory, BASE)
    tables.map(0, 0x1000)
    assert [len(entries) for page, entries in set_entries(memory).items() if page < 4] == [1, 1, 1, 1]


def test_only_what_is_mapped_is_unmapped(memory: DMABuffer, tables: PageTables) -> None:
    tables.map(0x4000, 0x1000)
    before = memory[:]
    for address, pages, where in ((0x4000, 2, "0x5000"), (1 << 40, 1, "0x10000000000")):
        with pytest.raises(ValueError, match=f"nothing is mapped at {where}"):
            tables.unmap(address, pages)
    assert memory[:] == before


def test_no_room_for_tables(memory: DMABuffer, tables: PageTables) -> None:
    tables.map(0, 0x1000)
    tables.map(1 << 39, 0x2000)
    before = set_entries(memory)
    with pytest.raises(MemoryError, match=r"all 8 pages of .* are page tables"):
        tables.map((1 << 39) - PAGE, 0x1000, pages=2)
    after = set_entries(memory)
    assert {page: after[page] for page in (3, 6)} == {page: before[page] for page in (3, 6)}
    tables.map(0x2000, 0x3000)  # what takes no table is still mapped


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tables: tables.map(0x800, 0), "address 0x800 is not on a boundary of 4096 bytes"),
        (lambda tables: tables.map(0, 0x1001), "iova 0x1001 is not on a boundary of 4096 bytes"),
        (lambda tables: tables.map(1 << 48, 0), "address is a number of 48 bits"),
        (lambda tables: tables.map(0, 1 << 48), "iova is a number of 48 bits"),
        (lambda tables: tables.map(-PAGE, 0), "address is a number of 48 bits"),
        (lambda tables: tables.map((1 << 48) - PAGE, 0, 2), "2 pages at address 0xfffffffff000 end beyond 48 bits"),
        (lambda tables: tables.map(0, (1 << 48) - PAGE, 2), "2 pages at iova 0xfffffffff000 end beyond 48 bits"),
        (lambda tables: tables.map(0, 0, 0), "pages is at least 1"),
        (lambda tables: tables.unmap(0, 1 << 36), "nothing is mapped at 0x0"),
        (lambda tables: tables.unmap(PAGE, 1 << 36), "end beyond 48 bits"),
        (lambda tables: PageTables(tables.memory, 0x10), "iova 0x10 is not on a boundary"),
        (lambda tables: PageTables(tables.memory, (1 << 48) - PAGE), "8 pages at iova 0xfffffffff000 end beyond"),
        (lambda _: ContextDescriptor(0x800), "table 0x800 is not on a boundary of 4096 bytes"),
        (lambda _: ContextDescriptor(1 << 48), "table is a number of 48 bits"),
        (lambda _: ContextDescriptor(0, asid=1 << 16), "asid is a number of 16 bits"),
        (lambda _: stage1_entry(0x20), "descriptor 0x20 is not on a boundary of 64 bytes"),
        (lambda _: stage1_entry(1 << 48), "descriptor is a number of 48 bits"),
    ],
)
def test_wrong_numbers(
    memory: DMABuffer, tables: PageTables, call: Callable[[PageTables], object], message: str
) -> None:
    before = memory[:]
    with pytest.raises(ValueError, match=message):
        call(tables)
    assert memory[:] == before


@pytest.mark.parametrize(
    "call",
    [
        lambda tables: tables.map("0", 0),
        lambda tables: tables.map(0, 0.0),
        lambda tables: tables.map(0, 0, read_only=1),
        lambda tables: tables.unmap(None),
        lambda _: PageTables(bytearray(PAGE), 0),  # type: ignore[arg-type]
        lambda _: ContextDescriptor(0, valid=1),  # type: ignore[arg-type]
        lambda _: stage1_entry(None),  # type: ignore[arg-type]
    ],
)
def test_wrong_types(tables: PageTables, call: Callable[[PageTables], object]) -> None:
    with pytest.raises(TypeError):
        call(tables)
