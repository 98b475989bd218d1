"""Page tables of a VM's own, nested in one of the host's: DMA goes through both (IOMMU_HWPT_ALLOC)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import DeviceNotFoundError, IoctlError
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.memory.arguments import check_bool
from pyiommufd.kernel.pagetables.fault_queue import FaultQueue
from pyiommufd.kernel.pagetables.invalidation import invalidate
from pyiommufd.kernel.pagetables.nested_data import SMMUv3Stage1, TypedData, packed
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.memory.ioas import IOAS
    from pyiommufd.kernel.pagetables.hwpt import HWPT
    from pyiommufd.kernel.virtual.viommu import VIOMMU


class NestedHWPT(KernelObject):
    """A stage-1 page table that a VM owns and fills, nested in a page table of the host's.

    Made by `HWPT.alloc_nested` or `VIOMMU.alloc_nested`. The addresses that a device sends are translated by it, and
    the result, as every address within it, by its parent. IOMMUs keep what they have read of it: what the VM changes
    there counts once it has been invalidated.

    Thread safety: everything here may be used from any thread.

    Attributes:
        parent: The page table that it is nested in: stage 2.
        viommu: The vIOMMU that it was made by; None: by the parent alone.
        host: The device that it was made for, as it was then.
        data: What the IOMMU's driver was given of it.
        flags: The IOMMU_HWPT_ALLOC flags that it was made with.
        fault_queue: Where page requests of its devices arrive; None: nowhere.
    """

    __slots__ = ("data", "fault_queue", "flags", "host", "parent", "viommu")

    def __init__(
        self,
        parent: HWPT,
        viommu: VIOMMU | None,
        host: HostDevice,
        data: TypedData,
        flags: int,
        fault_queue: FaultQueue | None,
    ) -> None:
        super().__init__(parent.iommufd)
        self.parent = parent
        self.viommu = viommu
        self.host = host
        self.data = data
        self.flags = flags
        self.fault_queue = fault_queue

    @property
    def ioas(self) -> IOAS:
        """The address space that stage 2 leads to."""
        return self.parent.ioas

    @property
    def uses(self) -> tuple[KernelObject, ...]:
        """What it is nested in, and the fault queue if there is one."""
        return (self._owner,) if self.fault_queue is None else (self._owner, self.fault_queue)

    @property
    def _owner(self) -> HWPT | VIOMMU:
        return self.parent if self.viommu is None else self.viommu

    def invalidate(self, entries: Iterable[TypedData]) -> None:
        """Have the IOMMU forget what it keeps of translations that the VM has changed (IOMMU_HWPT_INVALIDATE).

        Of page tables that were made by a vIOMMU it depends on the IOMMU whether this or `VIOMMU.invalidate` is the
        one: VT-d takes `VTdInvalidation` here; SMMUv3 takes `SMMUv3Command` there.

        Args:
            entries: What is to be forgotten, in this order, all of one type; none: nothing is done.

        Raises:
            InvalidationError: The kernel refused an entry; those before it were done.
            TypeError, ValueError: They are no such entries, or not of one type and length.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        invalidate(self, entries)

    def __repr__(self) -> str:
        return f"<NestedHWPT {self.id} in {self._owner!r}{' closed' if self.closed else ''}>"


def alloc_nested(
    parent: HWPT,
    viommu: VIOMMU | None,
    data: TypedData,
    device: Device | None,
    *,
    pasid: bool = False,
    fault_queue: FaultQueue | None = None,
) -> NestedHWPT:
    """Allocate a nested page table; see `HWPT.alloc_nested` and `VIOMMU.alloc_nested`."""
    place = parent if viommu is None else viommu
    data_type, content = packed(data, "a stage-1 page table")
    if fault_queue is not None and not isinstance(fault_queue, FaultQueue):
        raise TypeError(f"page requests go to a FaultQueue, not to {type(fault_queue).__name__}")
    flags = uapi.IOMMU_HWPT_ALLOC_PASID if check_bool(pasid, "pasid") else 0
    flags |= 0 if fault_queue is None else uapi.IOMMU_HWPT_FAULT_ID_VALID
    with place.iommufd._lock:
        place._live()
        device = check_device(place, _maker(place) if device is None else device, "IOMMU_HWPT_ALLOC")
        uses = {"dev_id": device._c, "pt_id": place._c}
        if fault_queue is not None:
            fault_queue._live()
            check_same(place, fault_queue)
            uses["fault_id"] = fault_queue._c
        nested = NestedHWPT(parent, viommu, device.host, data, flags, fault_queue)
        try:
            nested._create(partial(ioctls.hwpt_alloc, uses=uses, flags=flags, data_type=data_type, data=content))
        except IoctlError as error:
            place._live()  # these raise where one of the two was closed meanwhile
            device._live()
            ste = data.ste if isinstance(data, SMMUv3Stage1) else None
            code, in_viommu = error.errno or 0, viommu is not None
            raise diagnose.nested_alloc_error(code, device.name, repr(place), ste, in_viommu=in_viommu) from None
        return nested


def _maker(made: HWPT | VIOMMU) -> Device:
    """The device that a page table or vIOMMU was made for. The lock is held."""
    device = next((one for one in made.iommufd._context.devices() if one.host == made.host), None)
    if device is None:
        name = made.host.name
        raise DeviceNotFoundError(f"{name}, for which {made!r} was made, is not bound any more: give a device")
    return device


def check_device(made: HWPT | VIOMMU, device: Device, request: str) -> Device:
    """Require a device that a request about another object of its iommufd can name. The lock is held."""
    if not hasattr(device, "page_tables"):
        raise TypeError(f"what is made of {made!r} is for a Device, not for {type(device).__name__}")
    device._live()
    if device.iommufd._context is not made.iommufd._context:
        raise ValueError(f"{device.name} is bound to another IOMMUFD than that of {made!r}")
    device._check_id(request)
    return device


def check_same(made: KernelObject, other: KernelObject) -> None:
    """Require that two objects are of one iommufd."""
    if made.iommufd._context is not other.iommufd._context:
        raise ValueError(f"{other!r} belongs to another IOMMUFD than {made!r}")
