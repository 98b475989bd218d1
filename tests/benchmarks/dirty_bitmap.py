"""What `HWPT.dirty_bitmap` takes over many mappings, as a ratio to the ioctl alone.

By hand: python tests/benchmarks/dirty_bitmap.py. In a guest, on the mock IOMMU; --inside is that half.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyiommufd import DMABuffer
from pyiommufd.testing.guest.guest import Guest
from pyiommufd.testing.mock import MockIOMMUFD

MAPPINGS, PAGE, IOVA = 4000, 4096, 0x2000000


def best(work: Callable[[], object]) -> float:
    """Milliseconds, of the quickest of ten."""
    took = []
    for _ in range(10):
        start = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - start))
    return min(took)


def inside() -> None:
    """Measure and print."""
    length = MAPPINGS * PAGE
    with MockIOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        hwpt = iommufd.mock_device(ioas).alloc_hwpt(ioas, dirty_tracking=True)
        buffer = DMABuffer(length)
        for at in range(0, length, PAGE):
            ioas.map(memoryview(buffer)[at : at + PAGE], iova=IOVA + at)
        hwpt.set_dirty_tracking(True)
        alone = best(lambda: hwpt._read_dirty(IOVA, length, PAGE, 0))
        whole = best(lambda: hwpt.dirty_bitmap(IOVA, length))
        iommufd.fileno()  # others may have it now: the kernel is asked what is mapped
        shared = best(lambda: hwpt.dirty_bitmap(IOVA, length))
    print(f"{MAPPINGS} mappings; the ioctl alone {alone:.2f} ms")
    print(f"dirty_bitmap {whole:.2f} ms ({whole / alone:.1f} times); of a shared iommufd {shared:.2f} ms")


def main() -> None:
    """Run the other half in a guest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", action="store_true")
    if parser.parse_args().inside:
        inside()
        return
    root = Path(__file__).resolve().parents[2]
    with Guest(folder=root) as guest:
        done = guest.run(["python", str(Path(__file__).relative_to(root)), "--inside"], timeout=300)
    sys.stdout.write(done.stdout.decode())
    sys.exit(done.stderr.decode() if done.returncode else 0)


if __name__ == "__main__":
    main()
