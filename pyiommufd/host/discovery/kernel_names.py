"""The kernel's names of what a device is to the host: network interfaces and disks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.lookup import device_folders
from pyiommufd.printable import OneLine, listed

if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice

# What one controller has of an NVMe disk with native multipath, without a node (Linux 7.3, drivers/nvme/host/core.c,
# nvme_set_disk_name).
_HIDDEN = re.compile(r"nvme[0-9]+c[0-9]+n[0-9]+")


@dataclass(frozen=True, slots=True, repr=False)
class KernelNames(OneLine):
    """The names of a device's interfaces and disks. They are text of others: whoever may, renames an interface.

    Attributes:
        interfaces: Its network interfaces, such as ``eth0``; not those in another network namespace.
        block_devices: Its disks, such as ``vda`` or ``nvme0n1``, without partitions and what is built on them.
    """

    interfaces: tuple[str, ...] = ()
    block_devices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return listed((*self.interfaces, *self.block_devices))


def kernel_names(devices: Iterable[HostDevice]) -> dict[HostDevice, KernelNames]:
    """The names of the interfaces and disks of each of these devices.

    It goes through the interfaces and disks of the machine once, so that many devices cost little more than one.
    """
    by_path = {str(device.sys_path): device for device in devices}
    interfaces = _names("class/net", by_path)
    disks = _names("block", by_path)
    return {
        device: KernelNames(tuple(interfaces.get(path, ())), tuple(disks.get(path, ())))
        for path, device in by_path.items()
    }


def _names(kind: str, by_path: dict[str, HostDevice]) -> dict[str, list[str]]:
    """The names of a kind, by the folder of the device, in the order in which they are counted."""
    known = {path for path, device in by_path.items() if device.subsystem == "pci" or device.group_id is not None}
    found: dict[str, list[str]] = {}
    for name, path in sorted(_entries(f"{sysfs.SYS}/{kind}"), key=lambda entry: (len(entry[0]), entry[0])):
        for folder in device_folders(path.rpartition("/")[0], known):
            if folder in by_path:
                found.setdefault(folder, []).append(name)
    return found


def _entries(folder: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 (hot in an enumeration)
    except OSError:
        return
    for name in names:
        try:
            link = os.readlink(f"{folder}/{name}")  # noqa: PTH115
        except OSError:
            continue  # gone since, or an attribute of the class
        if not _HIDDEN.fullmatch(name):
            yield name, os.path.normpath(f"{folder}/{link}")
