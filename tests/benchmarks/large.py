"""What it costs to map 1 GiB at once for a device, in small pages and in huge ones, by the guest's instruction clock.

`figures` starts the guest; run as a program, there, this measures: large PROGRAM.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pyiommufd import IOAS, IOMMUFD, DMABuffer, plan_claim
from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import in_guest

DEVICE = "0000:00:01.0"
SIZE = 1 << 30
SMALL, HUGE = 4096, 2 << 20
ROUNDS = 2


def figures() -> Iterator[Figure]:
    """A map and an unmap, VT-d attached; and how much longer each takes with small pages than with huge ones."""
    found = in_guest("large", sources=["large.c"], memory=3072)
    for page, name in (("small", "pages of 4 KiB"), ("huge", "pages of 2 MiB")):
        ratio = (found[page]["map"] + found[page]["unmap"]) / found[page]["C"]
        yield Figure(f"map, unmap of 1 GiB, {name}, VT-d attached", ratio, 1.01, "x C")
    for half in ("map", "unmap"):
        ratio = found["small"][half] / found["huge"][half]
        yield Figure(f"{half} of 1 GiB, VT-d attached: pages of 4 KiB", ratio, None, "x pages of 2 MiB")


def measure(ioas: IOAS, page: int) -> dict[str, int]:
    """Nanoseconds of so many rounds, of the same memory for both: how contiguous it is matters most."""
    with DMABuffer(SIZE, huge_page_size=None if page == SMALL else page, memfd=True) as buffer:
        for at in range(0, SIZE, SMALL):
            buffer[at] = 1
        mapped = unmapped = 0
        for _ in range(ROUNDS):
            start = time.monotonic_ns()
            mapping = ioas.map(buffer)
            between = time.monotonic_ns()
            mapping.unmap()
            mapped += between - start
            unmapped += time.monotonic_ns() - between
        fds = [ioas.iommufd.fileno(), buffer.fileno()]
        command = [sys.argv[1], str(fds[0]), str(ioas.id), str(ROUNDS), str(fds[1])]
        done = subprocess.run(command, pass_fds=fds, check=True, capture_output=True)
    return {"map": mapped, "unmap": unmapped, "C": int(done.stdout)}


def main() -> None:
    """Measure."""
    gc.disable()
    Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").write_text(str(SIZE // HUGE))
    with plan_claim(DEVICE).apply(), IOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        iommufd.bind(DEVICE).attach(ioas)
        result = {name: measure(ioas, page) for name, page in (("small", SMALL), ("huge", HUGE))}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
