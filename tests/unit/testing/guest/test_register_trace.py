"""Reading QEMU's trace of register accesses and its memory tree."""

from __future__ import annotations

from pyiommufd.testing.guest.register_trace import RegisterAccess, parse_ranges, parse_trace

MTREE = """\
address-space: memory
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    00000000fe000000-00000000fe0fffff (prio 1, i/o): edu-mmio
    00000000fe200000-00000000fe2fffff (prio 1, i/o): edu-mmio [disabled]
address-space: cpu-memory-0
    00000000fe000000-00000000fe0fffff (prio 1, i/o): edu-mmio
"""
LINES = [
    "memory_region_ops_write cpu 0 mr 0x55d0 addr 0xfe000080 value 0x100000 size 8 name 'edu-mmio'\n",
    "something else\n",
    "12@17.5:memory_region_ops_read cpu 1 mr 0x55d0 addr 0xfe200004 value 0xff size 4 name 'edu-mmio'\n",
    "memory_region_ops_read cpu -1 mr 0x1 addr 0x3f8 value 0x0 size 1 name 'serial'\n",
]


def test_ranges_are_found_once() -> None:
    ranges = parse_ranges(MTREE)
    assert ranges["edu-mmio"] == [range(0xFE000000, 0xFE100000), range(0xFE200000, 0xFE300000)]


def test_accesses_in_order_with_offsets() -> None:
    assert list(parse_trace(LINES, parse_ranges(MTREE))) == [
        RegisterAccess("write", 0xFE000080, 0x80, 8, 0x100000, "edu-mmio", 0),
        RegisterAccess("read", 0xFE200004, 4, 4, 0xFF, "edu-mmio", 1),
        RegisterAccess("read", 0x3F8, None, 1, 0, "serial", -1),
    ]


def test_only_one_region() -> None:
    assert [access.region for access in parse_trace(LINES, {}, region="serial")] == ["serial"]
