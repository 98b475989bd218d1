"""What a live mapping keeps in memory, of this process: the kernel's part is not counted."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

from pyiommufd import IOMMUFD, DMABuffer
from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import in_guest

MAPPINGS = 100_000
PAGE, IOVA = 4096, 0x10_0000


def figures() -> Iterator[Figure]:
    """By how much the process grows for each of many mappings, of one buffer; the caller's list of them was there."""
    yield Figure(f"memory of each of {MAPPINGS} live mappings", in_guest("memory", counted=False), 300, "bytes")


def resident() -> int:
    """The memory of this process that is neither a file nor shared, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def main() -> None:
    """Measure."""
    kept: list[object] = [None] * MAPPINGS
    with IOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        buffer = DMABuffer(PAGE)
        ioas.map(buffer).unmap()
        gc.collect()
        before = resident()
        for number in range(MAPPINGS):
            kept[number] = ioas.map(buffer, iova=IOVA + number * PAGE)
        gc.collect()
        print(json.dumps((resident() - before) / MAPPINGS))


if __name__ == "__main__":
    main()
