"""Hardware queues: a VM's memory that the IOMMU reads commands from by itself (IOMMU_HW_QUEUE_ALLOC)."""

from __future__ import annotations

import contextlib
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import BusyError, IoctlError, ioctl_error
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.memory.arguments import check_range
from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.kernel.pagetables.nested_data import number
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.virtual.viommu import VIOMMU


class HWQueueType(IntEnum):
    """The kinds of hardware queues (IOMMU_HW_QUEUE_TYPE_*)."""

    TEGRA241_CMDQV = uapi.IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV


class HWQueue(KernelObject):
    """A queue of a VM's that the IOMMU reads by itself. Made by `VIOMMU.alloc_hw_queue`, and closed with the vIOMMU.

    Its memory stays pinned and mapped until it is closed: an unmap of it is a `BusyError`.

    Thread safety: everything here may be used from any thread.

    Attributes:
        viommu: Its vIOMMU.
        type: The kind: a `HWQueueType`, or the number of one that is not known here.
        index: Its number in the vIOMMU.
        memory: Where its memory is, in the nesting parent.
    """

    __slots__ = ("index", "memory", "type", "viommu")

    def __init__(self, viommu: VIOMMU, queue_type: int, index: int, memory: IOVARange) -> None:
        super().__init__(viommu.iommufd)
        self.viommu = viommu
        self.type = queue_type
        self.index = index
        self.memory = memory

    @property
    def uses(self) -> tuple[KernelObject, ...]:
        """Its vIOMMU."""
        return (self.viommu,)

    @property
    def _owner(self) -> VIOMMU:
        return self.viommu

    def _destroy(self) -> None:
        try:
            super()._destroy()
        except BusyError as error:
            raise diagnose.hw_queue_destroy_error(error.errno or 0, repr(self)) from None

    def _finalize(self) -> None:
        # The kernel unmaps no memory that it is in.
        if not self._iommufd.in_child:
            with contextlib.suppress(IoctlError):
                ioctls.destroy(self._c)

    def __repr__(self) -> str:
        return f"<HWQueue {self.id}, number {self.index} of {self.viommu!r}{' closed' if self.closed else ''}>"


def alloc_hw_queue(viommu: VIOMMU, queue_type: int, index: int, iova: int, length: int) -> HWQueue:
    """Allocate a hardware queue; see `VIOMMU.alloc_hw_queue`."""
    queue_type, index = number(queue_type, 32, "queue_type"), number(index, 32, "index")
    iova, length = check_range(iova, length)
    if iova + length > 1 << 64:
        raise ValueError(f"{length:#x} bytes at {iova:#x} are no memory for a queue")
    memory = IOVARange(iova, iova + length - 1)
    queue = HWQueue(viommu, queue_type, index, memory)
    uses = {"viommu_id": viommu._c}
    try:
        queue._create(
            partial(ioctls.hw_queue_alloc, uses=uses, queue_type=queue_type, index=index, iova=iova, length=length)
        )
    except IoctlError as error:
        viommu._live()  # raises where it was closed meanwhile
        raise ioctl_error(error.request, error.errno or 0, f"{viommu!r}, queue {index}, {memory}") from None
    return queue
