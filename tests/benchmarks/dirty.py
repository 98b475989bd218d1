"""What `HWPT.dirty_bitmap` costs, as ratios to C, by the guest's instruction clock, on the mock IOMMU.

`figures` starts the guest; run as a program, there, this measures: dirty PROGRAM.
"""

from __future__ import annotations

import gc
import json
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyiommufd import HWPT, DMABuffer
from pyiommufd.testing.mock import MockIOMMUFD, commands
from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import in_guest

PAGE, MIB, IOVA = 4096, 1 << 20, 1 << 30
MAPPINGS = 4000
ROUNDS = 3
SPACES = {"64 GiB, entries of 1 MiB": (64 << 30, MIB), "1 GiB, entries of 4 KiB": (1 << 30, PAGE)}
"""Bytes, and of an entry of the page table. The mock's addresses end at 2 GiB unless its entries are huge."""
RUN = 16
"""Entries that are written to together, at most."""


def best(work: Callable[[], object]) -> int:
    """Nanoseconds, of the quickest time."""
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        work()
        took.append(time.perf_counter_ns() - start)
    return min(took)


def by_c(hwpt: HWPT, length: int, *, scan: bool) -> tuple[int, int]:
    """Nanoseconds, and how many ranges there were."""
    fd = hwpt._iommufd._live().fd
    command = [sys.argv[1], str(fd), str(hwpt.id), str(IOVA), str(length), str(ROUNDS), str(int(scan))]
    took, found = subprocess.run(command, pass_fds=[fd], check=True, capture_output=True).stdout.split()
    return int(took), int(found)


def ranges(length: int, entry: int) -> dict[str, float]:
    """One percent of the entries was written to, in runs."""
    huge = entry == MIB
    part = 64 * MIB
    with MockIOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        device = iommufd.mock_device(ioas)
        memory = DMABuffer(part, huge_page_size=2 * MIB) if huge else DMABuffer(part)
        ioas.huge_pages = huge
        device.detach()
        data = struct.pack("=II", 0, commands.PageTableType.HUGE if huge else commands.PageTableType.DEFAULT)
        hwpt = device.alloc_hwpt(ioas, dirty_tracking=True, data_type=commands.HWPT_DATA_TYPE, data=data)
        device.attach(hwpt)
        mappings = ioas.map_many(memory, [(0, part, IOVA + at) for at in range(0, length, part)])
        hwpt.set_dirty_tracking(True)
        chosen = random.Random(1)  # noqa: S311
        entries, written = length // entry, set[int]()
        while len(written) < entries // 100:
            start = chosen.randrange(entries)
            written.update(range(start, min(start + chosen.randint(1, RUN), entries)))
        device.set_dirty(IOVA, [one * entry // PAGE for one in written], count=length // PAGE)
        alone, count = by_c(hwpt, length, scan=True)
        found = list(hwpt.dirty_bitmap(IOVA, length, clear=False).ranges())
        assert len(found) == count
        took = best(lambda: list(hwpt.dirty_bitmap(IOVA, length, clear=False).ranges()))
        print(length, entry, "C", alone, "here", took, "ranges", count, file=sys.stderr)
        mappings.unmap()
    return {"ratio": took / alone, "count": count}


def many() -> dict[str, float]:
    """Over many mappings."""
    length = MAPPINGS * PAGE
    with MockIOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        ioas.huge_pages = False
        hwpt = iommufd.mock_device(ioas).alloc_hwpt(ioas, dirty_tracking=True)
        buffer = DMABuffer(length)
        for at in range(0, length, PAGE):
            ioas.map(memoryview(buffer)[at : at + PAGE], iova=IOVA + at)
        hwpt.set_dirty_tracking(True)
        alone, _ = by_c(hwpt, length, scan=False)
        found = {"": best(lambda: hwpt.dirty_bitmap(IOVA, length, clear=False)) / alone}
        iommufd.fileno()  # others may have it now: the kernel is asked what is mapped
        found[" of a shared iommufd"] = best(lambda: hwpt.dirty_bitmap(IOVA, length, clear=False)) / alone
    return found


def figures() -> Iterator[Figure]:
    """Ranges of much memory, and many mappings."""
    measured = in_guest("dirty", sources=["dirty.c"], memory=2048)
    for name, of in measured["ranges"].items():
        goal = 1.5 if name.startswith("64") else None
        yield Figure(f"dirty bitmap of {name}, 1 % set, to {of['count']:.0f} ranges", of["ratio"], goal, "x C")
    for name, ratio in measured["many"].items():
        yield Figure(f"dirty bitmap over {MAPPINGS} mappings{name}", ratio, 1.5, "x the ioctl by C")


def main() -> None:
    """Measure."""
    gc.disable()
    Path("/proc/sys/vm/nr_hugepages").write_text("40")
    spaces = {name: ranges(*space) for name, space in SPACES.items()}
    print(json.dumps({"ranges": spaces, "many": many()}))


if __name__ == "__main__":
    main()
