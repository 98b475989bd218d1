"""A page-fault service: each page is mapped when a device asks for it, and not before.

    pyiommufd guest -- python examples/fault_service.py

The device is one of the kernel's mock IOMMU, which `pyiommufd guest` has. It asks for COUNT pages, one after the other,
without waiting for the answers, and at last for one that there is not. `serve` is the same for a real device, which
takes PRI; the mock's part is in `ask`.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import sys
import time

from pyiommufd import IOAS, DMABuffer, DMAMapping, FaultQueue, IOMMUFDError
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD

PAGE = mmap.PAGESIZE
START = 1 << 24  # the first address: a mock device reaches none below


async def serve(queue: FaultQueue, space: IOAS, memory: DMABuffer, count: int) -> dict[int, DMAMapping]:
    """Answer so many requests, each by mapping the page of the memory that it is for.

    Returns:
        The mappings by their addresses, in the order in which they were asked for.
    """
    pages, mapped = memoryview(memory), dict[int, DMAMapping]()
    async for group in queue:
        for request in group:
            offset = request.address - START
            if 0 <= offset < len(memory) and request.address not in mapped:
                mapped[request.address] = space.map(pages[offset : offset + PAGE], iova=request.address)
        queue.respond(group, success=all(request.address in mapped for request in group))
        count -= len(group.requests)
        if not count:
            break
    return mapped


def ask(device: MockDevice, count: int) -> None:
    """What the device does: it asks for each page of the memory, and for the one behind it."""
    for number in range(count + 1):
        device.page_fault(START + number * PAGE, group=number % 512)


async def main(count: int) -> None:
    memory = DMABuffer(count * PAGE)
    with MockIOMMUFD() as iommufd:
        space, queue = iommufd.alloc_ioas(), iommufd.alloc_fault_queue()
        device = iommufd.mock_device(space)
        device.replace(device.alloc_hwpt(space, fault_queue=queue))
        start = time.monotonic()
        mapped, _ = await asyncio.gather(serve(queue, space, memory, count + 1), asyncio.to_thread(ask, device, count))
        seconds = time.monotonic() - start
        in_order = list(mapped) == [START + number * PAGE for number in range(count)]
        reached = device.reaches(memory, START)
    print(f"{len(mapped)} page faults served {'in order' if in_order else 'out of order'}, and 1 refused")
    print(f"{seconds:.1f} s, {len(mapped) / seconds:.0f} in a second")
    if not (in_order and reached):
        sys.exit("the device does not reach what was mapped for it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", metavar="COUNT", type=int, nargs="?", default=10000, help="pages, by default 10000")
    if (pages := parser.parse_args().count) < 1:
        parser.error(f"{pages} is not a number of pages")
    try:
        asyncio.run(main(pages))
    except IOMMUFDError as error:
        sys.exit(str(error))
