"""Nested translation: a device's DMA by a VM's own page tables, on Linux's driver of the SMMUv3.

    pyiommufd guest --iommu smmuv3-nested -- python examples/nested_translation.py

The addresses that DEVICE sends are translated by page tables that this program writes (stage 1), and the result by
those of the kernel (stage 2). DEVICE is an edu device of QEMU's; by default the one that is alone in its IOMMU group in
such a guest. It takes root, an SMMUv3 with both stages, and a kernel of 6.15 or later.
"""

from __future__ import annotations

import argparse
import os
import sys

from pyiommufd import (
    IOMMUFD,
    DMABuffer,
    IOMMUFDError,
    SMMUv3Command,
    VEventType,
    VIOMMUType,
    find_device,
    plan_claim,
)
from pyiommufd.testing.edu import EduDriver
from pyiommufd.testing.smmuv3 import PAGE, ContextDescriptor, PageTables, stage1_entry

PAGES = 8
SIZE = 4  # bytes of a transfer: one access of QEMU's edu, and so one event if it fails
SOURCE, TARGET, NOWHERE = 0x4000000, 0x4001000, 0x4010000  # what the device sends
TABLES, DESCRIPTOR, DATA = 0x1000000, 0x1100000, 0x1200000  # in the nesting parent: what a VM has for memory
TARGET_DATA = 0x1300000  # the same memory as DATA, a second time
ASID, STREAM = 5, 0x77  # the VM's names of the address space and of the device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", metavar="DEVICE", nargs="?", default="0000:00:01.0", help="such as 0000:00:01.0")
    host = find_device(parser.parse_args().device)
    with plan_claim(host).apply(), IOMMUFD() as iommufd:
        device = iommufd.bind(host)
        device.bus_master = True

        # Stage 2, and what a VM has in its memory: data, page tables, and the descriptor that leads to them.
        ioas = iommufd.alloc_ioas()
        parent = device.alloc_hwpt(ioas, nest_parent=True)
        data, tables_memory, descriptor = DMABuffer(PAGES * PAGE), DMABuffer(16 * PAGE), DMABuffer(PAGE)
        ioas.map(data, iova=DATA)
        target = ioas.map(data, iova=TARGET_DATA)
        ioas.map(tables_memory, iova=TABLES)
        ioas.map(descriptor, iova=DESCRIPTOR)

        # Stage 1.
        tables = PageTables(tables_memory, TABLES)
        tables.map(SOURCE, DATA)
        tables.map(TARGET, TARGET_DATA + PAGE)
        descriptor[:64] = bytes(ContextDescriptor(tables.iova, ASID))

        viommu = device.alloc_viommu(parent, VIOMMUType.ARM_SMMUV3)
        viommu.alloc_vdevice(device, STREAM)
        events = viommu.alloc_event_queue(VEventType.ARM_SMMUV3, depth=4)
        device.attach(viommu.alloc_nested(stage1_entry(DESCRIPTOR)))

        with EduDriver(device) as driver:

            def copy(address: int = TARGET) -> str:
                """Have the device copy fresh bytes from SOURCE, which is page 0. Where they are then."""
                fresh = os.urandom(SIZE)
                data[:SIZE] = fresh
                driver.copy_in(SOURCE, SIZE)
                driver.copy_out(address, SIZE)
                found = [page for page in range(1, PAGES) if data[page * PAGE :].startswith(fresh)]
                return f"arrived in page {found[0]}" if found else "nothing arrived"

            print("two stages:", copy())

            print("\nThe VM changes a translation, and invalidates:")
            commands = {
                "one page": SMMUv3Command.tlbi_va(TARGET, ASID),
                "a range": SMMUv3Command.tlbi_va(SOURCE, ASID, pages=2),
                "all of an ASID": SMMUv3Command.tlbi_asid(ASID),
                "everything": SMMUv3Command.tlbi_all(),
            }
            for page, (what, command) in enumerate(commands.items(), start=2):
                tables.map(TARGET, TARGET_DATA + page * PAGE)
                before = copy()
                viommu.invalidate([command])
                print(f"{what}: before {before}, after {copy()}")

            print("\nThe host takes memory away from the VM, and gives it back:")
            target.unmap()
            print("unmapped:", copy())
            ioas.map(data, iova=TARGET_DATA)
            print("mapped anew:", copy())

            print("\nWhat goes wrong in stage 1 is told:")
            print("bad address:", copy(NOWHERE), events.read(timeout=10))
            tables.map(TARGET, TARGET_DATA + PAGE, read_only=True)
            viommu.invalidate([SMMUv3Command.tlbi_va(TARGET, ASID)])
            print("read-only page:", copy(), events.read(timeout=10))
            descriptor[:64] = bytes(ContextDescriptor(tables.iova, ASID, valid=False))
            viommu.invalidate([SMMUv3Command.cfgi_cd(STREAM), SMMUv3Command.tlbi_asid(ASID)])
            driver.copy_out(TARGET, SIZE)
            print("bad context descriptor:", events.read(timeout=10))

            for _ in range(7):
                driver.copy_out(TARGET, SIZE)
            print("seven more, with room for four:")
            for _ in range(5):
                print(" ", events.read(timeout=10))


if __name__ == "__main__":
    try:
        main()
    except (IOMMUFDError, OSError) as error:
        sys.exit(str(error))
