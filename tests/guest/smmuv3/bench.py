"""A VM's part of nested translation on an SMMUv3, and a device that does DMA by it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from pyiommufd import (
    HWPT,
    IOAS,
    VIOMMU,
    Device,
    DMABuffer,
    DMAMapping,
    SMMUv3Command,
    SMMUv3Event,
    VEventQueue,
)
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.smmuv3 import PAGE, ContextDescriptor, PageTables
from tests.patience import patience

PAGES = 64
ASID, STREAM = 5, 0x77
"""The VM's names of the address space and of the device."""
SOURCE, TARGET, NOWHERE = 0x400_0000, 0x400_1000, 0x500_0000
"""Addresses that the device sends; `NOWHERE` leads nowhere in stage 1. None is mapped in stage 2."""
TABLES, DESCRIPTOR, DATA, TARGET_DATA = 0x100_0000, 0x110_0000, 0x120_0000, 0x130_0000
"""Addresses of the nesting parent. `TARGET_DATA` is the same memory as `DATA`, and mapped by itself."""
SIZE = 4
"""Bytes of a transfer. QEMU's edu does it by one access, so that what fails is one event."""

_fresh = itertools.count(0x1234_0000)


@dataclass
class Bench:
    """The device, the two stages, and the memory that both lead to.

    QEMU keeps every translation that it has made, up to 256 of an SMMU, and drops all when there are more (QEMU 11.1,
    hw/arm/smmu-common.c, smmu_iotlb_insert); these tests use a few dozen. So what is changed and not invalidated is
    stale here, always; the architecture only says that it may be.
    """

    device: Device
    ioas: IOAS
    parent: HWPT
    viommu: VIOMMU
    data: DMABuffer
    target: DMAMapping
    tables: PageTables
    descriptor: DMABuffer
    driver: EduDriver

    def lands(self, address: int = TARGET, source: int = SOURCE) -> int | None:
        """The page that a transfer to an address changes; None: none. What is transferred is in page 0.

        Args:
            address: Where the device is to write to.
            source: Where it is to read from.
        """
        fresh = next(_fresh).to_bytes(SIZE, "little")
        self.data[:SIZE] = fresh
        self.driver.copy_in(source, SIZE)
        self.driver.copy_out(address, SIZE)
        found = [page for page in range(1, PAGES) if self.data[page * PAGE : page * PAGE + SIZE] == fresh]
        assert len(found) < 2, found
        return found[0] if found else None

    def lead(self, page: int, address: int = TARGET, *, read_only: bool = False) -> None:
        """Have stage 1 lead an address to a page of the data."""
        self.tables.map(address, TARGET_DATA + page * PAGE, read_only=read_only)

    def invalidate(self, *commands: SMMUv3Command) -> None:
        """Invalidate by commands of the VM."""
        self.viommu.invalidate(commands)

    def describe(self, table: int = TABLES, asid: int = ASID, *, valid: bool = True) -> None:
        """Write the context descriptor; it is not invalidated."""
        descriptor = bytes(ContextDescriptor(table, asid, valid))
        self.descriptor[: len(descriptor)] = descriptor


def next_event(events: VEventQueue) -> SMMUv3Event:
    """The next event, which is none that is lost."""
    event = events.read(timeout=patience())
    assert isinstance(event, SMMUv3Event), event
    return event
