"""A large machine for umockdev: as many functions as asked for, four to a group, behind root ports.

python machine.py FUNCTIONS     prints the description that `umockdev-run --device` takes
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

PER_BUS = 64
PER_GROUP = 4


def description(functions: int) -> Iterator[str]:
    """The lines of the description; a root port a bus is one of the functions."""
    for number in range(functions):
        bus, place = divmod(number, PER_BUS)
        port = f"/devices/pci0000:00/{bus >> 8:04x}:00:{(bus >> 3) & 31:02x}.{bus & 7}"
        if place == 0:
            path, driver, code, ids = port, "pcieport", 0x060400, (0x8086, 0x1901)
        else:
            name = f"{bus >> 8:04x}:{(bus & 255) + 1:02x}:{place >> 3:02x}.{place & 7}"
            path, code, ids = f"{port}/{name}", 0x020000, (0x8086, 0x10ED)
            driver = ("", "ixgbevf", "vfio-pci", "ixgbevf")[place % 4]
        up = "../" * (path.count("/"))
        yield f"P: {path}"
        yield "E: SUBSYSTEM=pci"
        yield f"E: PCI_SLOT_NAME={path.rpartition('/')[2]}"
        yield f"A: vendor={ids[0]:#06x}\\n"
        yield f"A: device={ids[1]:#06x}\\n"
        yield f"A: class={code:#08x}\\n"
        yield f"A: numa_node={bus & 1}\\n"
        if place == 0:
            yield f"A: secondary_bus_number={(bus & 255) + 1}\\n"
        if driver:
            yield f"L: driver={up}bus/pci/drivers/{driver}"
        yield f"L: iommu_group={up}kernel/iommu_groups/{number // PER_GROUP}"
        yield f"L: iommu={up}devices/virtual/iommu/dmar0"
        if driver == "vfio-pci":
            yield f"A: vfio-dev/vfio{number}/dev=240:{number}\\n"
        yield ""


if __name__ == "__main__":
    print("\n".join(description(int(sys.argv[1]))))
