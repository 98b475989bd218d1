"""The sizes of the pages behind memory of this process."""

from __future__ import annotations

import fcntl
import mmap
import struct
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pyiommufd.errors import ioctl_error

# linux/fs.h, since Linux 6.7: struct pm_scan_arg, twelve numbers of 64 bits; struct page_region, three.
_ARGUMENT = struct.Struct("=12Q")
_PAGEMAP_SCAN = 0xC060_6610
_PRESENT, _HUGE = 1 << 3, 1 << 6
_REGION, _REGIONS = 3, 1024

_TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def page_sizes(address: int, length: int) -> dict[int, int]:
    """How many bytes of a range of memory that are there are in pages of which size, the largest first.

    Raises:
        UnsupportedError: The kernel is older than Linux 6.7.
        IoctlError: The kernel refused.
    """
    found: Counter[int] = Counter()
    regions = list(_regions(address, address + length))
    areas = list(_areas(address, address + length)) if any(huge for _, _, huge in regions) else []
    for start, end, huge in regions:
        if not huge:
            found[mmap.PAGESIZE] += end - start
            continue
        for first, last, size in areas:
            if (shared := min(end, last) - max(start, first)) > 0:
                found[size if size > mmap.PAGESIZE else _transparent()] += shared
    return dict(sorted(found.items(), reverse=True))


def _regions(start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """What of a range is there: start, end, and whether in huge pages."""
    regions = array("Q", (0,)) * (_REGION * _REGIONS)
    where, _ = regions.buffer_info()
    with open("/proc/self/pagemap", "rb") as file:
        while start < end:
            numbers = _ARGUMENT.size, 0, start, end, 0, where, _REGIONS, 0, 0, _PRESENT, 0, _PRESENT | _HUGE
            argument = bytearray(_ARGUMENT.pack(*numbers))
            try:
                count = fcntl.ioctl(file, _PAGEMAP_SCAN, argument)
            except OSError as error:
                raise ioctl_error("PAGEMAP_SCAN", error.errno or 0, f"{start:#x}..{end - 1:#x}") from None
            for at in range(0, _REGION * count, _REGION):
                yield regions[at], regions[at + 1], bool(regions[at + 2] & _HUGE)
            start = _ARGUMENT.unpack(argument)[4]  # where the walk ended


def _areas(start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The areas of this process's memory that a range touches: start, end, and the page size that their kind has."""
    first = last = 0
    with open("/proc/self/smaps", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b" ")
            if not name.endswith(b":"):
                first, last = (int(one, 16) for one in name.split(b"-"))
                if first >= end:
                    return
            elif name == b"KernelPageSize:" and last > start:
                yield first, last, int(rest.split()[0]) << 10


def _transparent() -> int:
    """The size of transparent huge pages."""
    return int(_TRANSPARENT.read_text())
