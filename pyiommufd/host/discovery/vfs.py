"""Virtual functions: those that a physical function has, and how many it can have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice, as_device
from pyiommufd.printable import OneLine, listed


@dataclass(frozen=True, slots=True, repr=False)
class VFs(OneLine):
    """The virtual functions of a device, as they were when it was looked at.

    Attributes:
        total: How many it can have; 0: it has no SR-IOV.
        count: How many it has.
        devices: Those, in the order of their numbers.
    """

    total: int
    count: int
    devices: tuple[HostDevice, ...]

    def _line(self) -> str:
        return f"{self.count} of {self.total}{f': {listed(self.devices)}' if self.devices else ''}"


def vfs_of(device: HostDevice | str | Path) -> VFs:
    """The virtual functions of a device.

    Raises:
        DeviceNotFoundError: There is no such device.
    """
    device = device if isinstance(device, HostDevice) else as_device(device)
    total = sysfs.read(device.sys_path / "sriov_totalvfs")
    if total is None:
        return VFs(0, 0, ())
    # Not by sriov_numvfs, which cannot be read while somebody sets it, and may hang in that.
    found = device.virtual_functions
    return VFs(int(total), len(found), found)
