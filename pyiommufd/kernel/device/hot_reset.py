"""Hot reset: of everything on a device's bus or slot."""

from __future__ import annotations

from dataclasses import dataclass

from pyiommufd import uapi
from pyiommufd.printable import OneLine, listed
from pyiommufd.uapi import device_ioctls
from pyiommufd.uapi.ioctls import Fd


@dataclass(frozen=True, slots=True, repr=False)
class DependentDevice(OneLine):
    """A device that a hot reset resets: the one asked for, or another on its bus or slot.

    Attributes:
        name: Its PCI address.
        owned: Whether the iommufd owns it: it is bound there, or is on a vfio driver in a group that has one bound.
        id: Its id within the iommufd; None where it is not bound there.
    """

    name: str
    owned: bool
    id: int | None

    def _line(self) -> str:
        return f"{self.name}, {'owned' if self.owned else 'not owned'}{'' if self.id is None else f', id {self.id}'}"


@dataclass(frozen=True, slots=True, repr=False)
class HotResetInfo(OneLine):
    """The devices that a hot reset resets (VFIO_DEVICE_GET_PCI_HOT_RESET_INFO).

    Attributes:
        devices: Every device, the asked one included. Those owned and not bound are reset, too.
    """

    devices: tuple[DependentDevice, ...]

    def _line(self) -> str:
        missing = [device.name for device in self.not_owned]
        return f"of {listed([one.name for one in self.devices])}{f', not owned: {listed(missing)}' if missing else ''}"

    @property
    def not_owned(self) -> tuple[DependentDevice, ...]:
        """Those for which the kernel refuses the reset: on a host driver or none, or bound elsewhere."""
        return tuple(device for device in self.devices if not device.owned)


def read_hot_reset_info(fd: Fd) -> HotResetInfo:
    """Ask what a hot reset of a bound device resets. ENODEV: neither its bus nor its slot can be reset."""
    _, found = device_ioctls.hot_reset_info(fd)
    return HotResetInfo(tuple(_dependent(*each) for each in found))


def _dependent(device_id: int, segment: int, bus: int, devfn: int) -> DependentDevice:
    name = f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"
    owned = device_id != uapi.VFIO_PCI_DEVID_NOT_OWNED
    bound = owned and device_id != uapi.VFIO_PCI_DEVID_OWNED
    return DependentDevice(name, owned, device_id if bound else None)
