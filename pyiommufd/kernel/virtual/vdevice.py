"""Virtual devices: what a VM calls a device behind its vIOMMU (IOMMU_VDEVICE_ALLOC)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pyiommufd import diagnose
from pyiommufd.errors import IoctlError, NotFoundError
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.attachable import Attachable
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.virtual.viommu import VIOMMU


class VDevice(KernelObject):
    """A device of a VM. Made by `VIOMMU.alloc_vdevice`, and closed with the vIOMMU or the device.

    It can be closed while its device is attached to a nested page table: events may go on with the number.

    Thread safety: everything here may be used from any thread.

    Attributes:
        viommu: Its vIOMMU.
        device: The device.
        virtual_id: What the VM calls it.
    """

    __slots__ = ("device", "viommu", "virtual_id")

    def __init__(self, viommu: VIOMMU, device: Device, virtual_id: int) -> None:
        super().__init__(viommu.iommufd)
        self.viommu = viommu
        self.device = device
        self.virtual_id = virtual_id

    def _goes_with(self, device: Attachable) -> bool:
        return self.device is device

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
        except NotFoundError:
            # The kernel destroyed it when the device was unbound, and never uses its id again (Linux 7.3,
            # iommufd_device_remove_vdev).
            ioctls.abandon(self._c)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<VDevice {self.id}, {self.device.name} as {self.virtual_id:#x} in {self.viommu!r}{state}>"


def alloc_vdevice(viommu: VIOMMU, device: Device, virtual_id: int) -> VDevice:
    """Allocate a virtual device; see `VIOMMU.alloc_vdevice`. The iommufd's lock is held."""
    made = VDevice(viommu, device, virtual_id)
    uses = {"viommu_id": viommu._c, "dev_id": device._c}
    try:
        made._create(partial(ioctls.vdevice_alloc, uses=uses, virtual_id=virtual_id))
    except IoctlError as error:
        viommu._live()  # these raise where one of the two was closed meanwhile
        device._live()
        others = [
            repr(one)
            for one in viommu.iommufd._context.objects()
            if isinstance(one, VDevice)
            and (one.device.host == device.host or (one.viommu is viommu and one.virtual_id == virtual_id))
        ]
        raise diagnose.vdevice_alloc_error(error.errno or 0, device.name, repr(viommu), others) from None
    return made
