"""One of every kind of object that an iommufd can have, alive at once, on the mock IOMMU."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from typing import ClassVar

import pytest

from pyiommufd import BusyError, DMABuffer, InUseError
from pyiommufd.testing.mock import MockIOMMUFD, commands
from tests.mock_data import stage1

IOVA = commands.APERTURE_START
PASID = 7
VIRTUAL_ID = 0x99
_REGISTERS = struct.Struct("=2I2Q")  # struct iommu_viommu_selftest


class MockScene:
    """An address space with two page tables, and a vIOMMU with all that there can be in it.

    `device` is attached to `virtual`, a page table nested in the vIOMMU, and with a PASID to `nested`, which is nested
    in `parent` alone and passes page requests on to `faults`: one has been read, and one has not. `peer` is attached to
    `plain`. An event waits in `events`. Two hardware queues are in the memory of `mapping`, and `window` is on the
    vIOMMU's registers.

    `OWNED` says which go when another is closed, `HELD` which keep another from being closed, and by what exception.

    Args:
        iommufd: What all of it is made from.
    """

    NAMES = (
        "device",
        "peer",
        "ioas",
        "mapping",
        "plain",
        "parent",
        "faults",
        "nested",
        "viommu",
        "virtual",
        "vdevice",
        "events",
        "first",
        "second",
        "window",
        "buffer",
    )
    _OF_VIOMMU = ("virtual", "vdevice", "events", "first", "second", "window")
    _OF_PARENT = ("nested", "viommu", *_OF_VIOMMU)
    OWNED: ClassVar[dict[str, tuple[str, ...]]] = {
        "device": ("vdevice",),
        "ioas": ("mapping", "plain", "parent", *_OF_PARENT),
        "parent": _OF_PARENT,
        "viommu": _OF_VIOMMU,
    }
    HELD: ClassVar[dict[str, tuple[tuple[str, ...], type[Exception]]]] = {
        "ioas": (("device", "peer"), InUseError),
        "plain": (("peer",), InUseError),
        "parent": (("device",), InUseError),
        "nested": (("device",), InUseError),
        "virtual": (("device",), InUseError),
        "viommu": (("device",), InUseError),
        "faults": (("nested",), InUseError),
        "first": (("second",), BusyError),
        "mapping": (("first", "second"), BusyError),
        "buffer": (("mapping",), BufferError),
    }

    def __init__(self, iommufd: MockIOMMUFD) -> None:
        self.iommufd = iommufd
        self.ioas = iommufd.alloc_ioas()
        self.device = iommufd.mock_device(self.ioas, pasid=True)
        self.peer = iommufd.mock_device(self.ioas)
        self.buffer = DMABuffer(2 * mmap.PAGESIZE)
        self.mapping = self.ioas.map(self.buffer, iova=IOVA)
        self.plain = self.peer.alloc_hwpt(self.ioas)
        self.parent = self.device.alloc_hwpt(self.ioas, nest_parent=True)
        self.faults = iommufd.alloc_fault_queue()
        self.nested = self.parent.alloc_nested(stage1(), pasid=True, fault_queue=self.faults)
        self.viommu = self.device.alloc_viommu(self.parent, commands.VIOMMU_TYPE, _REGISTERS.pack(0xCAFE, 0, 0, 0))
        self.virtual = self.viommu.alloc_nested(stage1(), pasid=True)
        self.vdevice = self.viommu.alloc_vdevice(self.device, VIRTUAL_ID)
        self.events = self.viommu.alloc_event_queue(commands.VEVENTQ_TYPE)
        self.first, self.second = (
            self.viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, number, IOVA, mmap.PAGESIZE) for number in range(2)
        )
        self.registers: tuple[int, int] = _REGISTERS.unpack(self.viommu.data)[2:]
        self.window = self.viommu.map(*self.registers)
        self.device.replace(self.virtual)
        self.device.attach(self.nested, PASID)
        self.peer.replace(self.plain)
        for group in range(2):
            self.device.page_fault(IOVA, pasid=PASID, group=group)
        self.request = self.faults.read(timeout=0)
        self.device.virtual_event()
        self.open = set(self.NAMES)

    def attempt(self, name: str) -> None:
        """Close one; raises what it raises."""
        one = getattr(self, name)
        one.unmap() if name == "mapping" else one.close()

    def close(self, name: str) -> None:
        """Close one, with the exception that the model says, and look at what is open then."""
        holders, refusal = self.HELD.get(name, ((), Exception))
        if name in self.open and self.open.intersection(holders):
            with pytest.raises(refusal):
                self.attempt(name)
        else:
            self.attempt(name)
            self.open -= {name, *self.OWNED.get(name, ())}
        assert self.really_open() == self.open, f"after closing {name}"

    def close_all(self, order: Iterable[str]) -> None:
        """Close all in an order; what is refused is tried again at the end of it."""
        left = list(order)
        while left:
            before = len(self.open)
            for name in left:
                self.close(name)
            left = [name for name in left if name in self.open]
            assert len(self.open) < before, f"{left} cannot be closed"

    def really_open(self) -> set[str]:
        """What is open by what the objects say of themselves."""
        found = {name for name in self.NAMES if name != "mapping" and not getattr(self, name).closed}
        return found | {"mapping"} if self.mapping.mapped else found

    def check_alive(self) -> None:
        """Everything does what it is there for."""
        assert self.device.on(self.virtual.id)
        assert self.device.on(self.nested.id, PASID)
        assert self.peer.on(self.plain.id)
        assert self.peer.reaches(self.buffer, IOVA)
        assert self.window.read32(0) == 0xCAFE
        with pytest.raises(BusyError):
            self.mapping.unmap()
        before = len(self.faults.unanswered)
        self.device.page_fault(IOVA, pasid=PASID, group=9)
        while self.faults.read(timeout=0).number != 9:
            pass
        assert len(self.faults.unanswered) > before
        self.faults.respond(*self.faults.unanswered)
        self.device.virtual_event()
        assert self.events.read(timeout=0).sequence >= 0
