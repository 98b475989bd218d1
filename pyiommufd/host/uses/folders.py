"""What is below a device in sysfs: its disks, interfaces, nodes, and child devices made by its driver."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyiommufd.errors import DeviceNotFoundError
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice, from_sys_path
from pyiommufd.host.discovery.lookup import SUBSYSTEMS


def folders_below(device: HostDevice) -> Iterator[Path]:
    """The folders of a device, its own first; of a bridge without those of the PCI devices behind it.

    Those stay when a bridge loses its driver. Behind another function, as behind Intel's VMD, they go with it.
    """
    for folder, names, _ in os.walk(device.sys_path):
        here = Path(folder)
        if device.is_bridge:
            names[:] = [name for name in names if not _is_pci(here / name)]
        yield here


def _is_pci(path: Path) -> bool:
    return not path.is_symlink() and sysfs.link_name(path / "subsystem") == "pci"


def devices_below(device: HostDevice, folders: Iterable[Path] | None = None) -> Iterator[HostDevice]:
    """The devices that its driver has made below a device, and that go away when the device leaves it.

    These are the drives behind Intel's VMD with the ports that they are at (Linux 7.3,
    drivers/pci/controller/vmd.c:1229), what a container of the fsl-mc bus holds (drivers/bus/fsl-mc/dprc-driver.c), and
    mediated devices; none of a bridge.

    Args:
        device: The device.
        folders: What `folders_below` has found of it, where that is known.
    """
    for folder in folders_below(device) if folders is None else folders:
        if folder != device.sys_path and sysfs.link_name(folder / "subsystem") in SUBSYSTEMS:
            try:
                found = from_sys_path(folder)
            except DeviceNotFoundError:
                continue  # gone since
            if is_removed_with(found, device):
                yield found


def is_removed_with(device: HostDevice, above: HostDevice) -> bool:
    """Whether a device that is below another in sysfs goes away when that one leaves its driver.

    A platform device below one of another bus may be what firmware has described, and not that driver's.
    """
    if above.is_bridge or above.driver is None:
        return False
    return device.subsystem == above.subsystem or device.subsystem not in ("platform", "amba")


def fibre_channel_ports(folders: Iterable[Path]) -> set[int]:
    """The names (WWPN) of a device's Fibre Channel ports."""
    names = (sysfs.number(folder / "port_name", 16) for folder in folders if folder.parent.name == "fc_host")
    return {name for name in names if name is not None}


def fibre_channel_controllers(folders: Iterable[Path]) -> list[Path]:
    """The folders of the NVMe controllers that a device's Fibre Channel ports lead to.

    They hang below no device, and name the port in their address (Linux 7.3, drivers/nvme/host/fc.c:3534,
    fabrics.c:140).
    """
    ports = fibre_channel_ports(folders)
    found = []
    for path in (sysfs.SYS / "class/nvme").glob("*") if ports else ():
        port = re.search(r"host_traddr=[^,]*pn-0x([0-9a-f]+)", sysfs.read(path / "address") or "")
        if port is not None and int(port[1], 16) in ports and sysfs.read(path / "transport") == "fc":
            found.append(path.resolve())
    return found


def is_below(device: HostDevice, path: str) -> bool:
    """Whether a folder, named without links, is one of `folders_below`."""
    top = str(device.sys_path)
    if path != top and not path.startswith(top + "/"):
        return False
    if device.is_bridge:
        while path != top:
            if sysfs.link_name(f"{path}/subsystem") == "pci":
                return False
            path = path.rpartition("/")[0]
    return True


def number_of(text: str | None) -> int | None:
    """The device number that sysfs and mountinfo write as ``major:minor``, as `os.stat` has it."""
    major, colon, minor = (text or "").partition(":")
    return os.makedev(int(major), int(minor)) if colon and major.isdigit() and minor.isdigit() else None


def node_name(folder: Path | str) -> str:
    """The path of a device's node, such as ``/dev/dri/card0``, from its folder."""
    for line in sysfs.lines(f"{folder}/uevent"):
        key, _, value = line.partition("=")
        if key == "DEVNAME":
            return f"/dev/{value.removeprefix('/dev/')}"
    return f"/dev/{Path(folder).name.replace('!', '/')}"


def join_words(names: list[str], most: int = 3) -> str:
    """Names for a sentence: ``a``, ``a and b``, ``a, b, c and 12 more``."""
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
