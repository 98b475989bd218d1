"""Devices and their IOMMU groups as the host sees them: frozen snapshots, found through udev and sysfs."""

from __future__ import annotations

import operator
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyiommufd.errors import DeviceNotFoundError, MissingLibraryError
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.aliases import dma_aliases
from pyiommufd.host.discovery.groups import Group, groups_folder, is_made_by_vfio, reserved_regions
from pyiommufd.host.discovery.kernel_names import kernel_names
from pyiommufd.host.discovery.lookup import SUBSYSTEMS, folders_by_kernel_name, folders_by_path, near_names, pci_address
from pyiommufd.host.discovery.sriov import physical_function, virtual_functions
from pyiommufd.iterables import iterate

DEVICES_EXPECTED = "devices are HostDevice objects, names or paths"
"""What an argument that names several takes, for errors."""

_VENDOR_DEVICE = re.compile(r"(?:0x)?([0-9a-f]{4}):(?:0x)?([0-9a-f]{4})")


@dataclass(frozen=True, slots=True, repr=False)
class HostDevice:
    """A device as it was when it was looked up.

    Nothing here changes when the machine does: look the device up again (`refreshed`) to see its driver of
    now. Two snapshots of one device are equal, whatever has changed between them.

    Attributes:
        name: The name on its bus, such as ``0000:02:01.0``.
        subsystem: The bus: ``pci``, ``mdev`` …
        sys_path: Its folder under ``/sys/devices``.
        vendor_id: PCI vendor, or None for what is not a PCI device.
        device_id: PCI device id, or None.
        class_code: PCI class, subclass and interface as one number of 24 bits, or None.
        driver: The driver it is on, or None.
        group_id: Its IOMMU group; where no IOMMU covers it, None, or the one that VFIO makes while it has the device.
        numa_node: Its NUMA node, or None where the machine has no say.
        iommu: The IOMMU that translates for it, such as ``dmar0``, or None.
        vfio_cdev: Its node, such as ``/dev/vfio/devices/vfio0``, or ``noiommu-vfio0`` where no IOMMU covers it; None
            where it is not on a vfio driver, or the kernel was built without VFIO_DEVICE_CDEV. For a device without an
            IOMMU there are nodes since Linux 7.3.
        on_vfio: Whether a vfio driver has it, cdev or not.
        is_bridge: Whether it is a bridge to another PCI bus, by its configuration header: vfio-pci takes none (Linux
            7.3, drivers/vfio/pci/vfio_pci_core.c:2232). Of the class of bridges (06xx) are also devices that it takes,
            such as an LPC controller or an NVSwitch.
        without_iommu: Whether no IOMMU covers it: its DMA reaches all memory, whatever is attached or mapped. That of a
            mediated device does not, as its parent's driver keeps it to what is mapped.
    """

    name: str
    subsystem: str
    sys_path: Path = field(compare=False)
    vendor_id: int | None = field(compare=False)
    device_id: int | None = field(compare=False)
    class_code: int | None = field(compare=False)
    driver: str | None = field(compare=False)
    group_id: int | None = field(compare=False)
    numa_node: int | None = field(compare=False)
    iommu: str | None = field(compare=False)
    vfio_cdev: str | None = field(compare=False)
    on_vfio: bool = field(compare=False)
    is_bridge: bool = field(default=False, compare=False)
    without_iommu: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        group = "no IOMMU group" if self.group_id is None else f"group {self.group_id}"
        return f"<HostDevice {self.subsystem} {self.name}, {self.driver or 'no driver'}, {group}>"

    @property
    def group(self) -> Group | None:
        """Its group as it was looked up in `group_id`, with the members that it has now; None where it had none."""
        return None if self.group_id is None else find_group(self.group_id)

    @property
    def aliases(self) -> tuple[str, ...]:
        """The PCI addresses that its DMA can carry; see `pyiommufd.host.discovery.aliases.dma_aliases`."""
        return dma_aliases(self)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Its network interfaces as they are now, such as ``eth0``; not those in another network namespace."""
        return kernel_names([self])[self].interfaces

    @property
    def block_devices(self) -> tuple[str, ...]:
        """Its disks as they are now, such as ``vda`` or ``nvme0n1``, without partitions."""
        return kernel_names([self])[self].block_devices

    @property
    def is_host_bridge(self) -> bool:
        """Whether it is where a PCI tree begins (class 0600): a part of the chipset, though vfio-pci takes it."""
        return self.class_code is not None and self.class_code >> 8 == 0x0600

    @property
    def physical_function(self) -> HostDevice | None:
        """The device that it is a virtual function of (SR-IOV), as that is now; None: it is no virtual function."""
        folder = physical_function(self.sys_path)
        return next(iter(_existing([folder])), None) if folder is not None else None

    @property
    def virtual_functions(self) -> tuple[HostDevice, ...]:
        """Its virtual functions (SR-IOV) as they are now, in the order of their numbers; none where it has none."""
        return tuple(_existing(virtual_functions(self.sys_path)))

    @property
    def is_mediated(self) -> bool:
        """Whether it is a mediated device: no IOMMU is before it, what it reaches is up to its parent's driver.

        All of the bus ``mdev`` are (Linux 7.3: the drivers i915, vfio_ap and vfio_ccw, and the samples).
        """
        return self.subsystem == "mdev"

    def refreshed(self) -> HostDevice:
        """The same device as it is now.

        Raises:
            DeviceNotFoundError: It is gone.
        """
        return from_sys_path(self.sys_path)


def from_sys_path(path: Path) -> HostDevice:
    """The device whose folder this is.

    Raises:
        DeviceNotFoundError: There is no such folder, or it is no device's.
    """
    return _read(path.resolve(), path.name)


def _read(path: Path, name: str, bus: str | None = None) -> HostDevice:
    """The device whose folder this is; the path has no symbolic link in it.

    Args:
        path: The folder.
        name: Its last part.
        bus: The bus on which udev has just found it; None: to be looked up.
    """
    # Text rather than Path below: it is what an enumeration of thousands spends its time on.
    at = f"{path}/"
    vendor = sysfs.number(at + "vendor", 16)
    # What has a vendor is still there.
    subsystem = bus if bus is not None and vendor is not None else sysfs.link_name(at + "subsystem")
    if subsystem is None:
        raise DeviceNotFoundError(f"there is no device at {path}")
    group = sysfs.link_name(at + "iommu_group")
    group_id = int(group) if group is not None and group.isdigit() else None
    iommu = sysfs.link_name(at + "iommu")
    node = sysfs.number(at + "numa_node")
    on_vfio, cdev = _vfio(at + "vfio-dev")
    return HostDevice(
        name=name,
        subsystem=subsystem,
        sys_path=path,
        vendor_id=vendor,
        device_id=sysfs.number(at + "device", 16),
        class_code=sysfs.number(at + "class", 16),
        driver=sysfs.link_name(at + "driver"),
        group_id=group_id,
        numa_node=None if node == -1 else node,
        iommu=iommu,
        vfio_cdev=cdev,
        on_vfio=on_vfio,
        is_bridge=subsystem == "pci" and _is_bridge(at),
        # VFIO makes groups for mediated devices, too.
        without_iommu=subsystem != "mdev" and iommu is None and (group_id is None or is_made_by_vfio(group_id)),
    )


def _is_bridge(at: str) -> bool:
    """Whether a PCI device has the header of a bridge.

    The kernel shows the number of the bus behind it for those alone (Linux 7.3, drivers/pci/pci-sysfs.c:1867). The
    header itself is not asked: to read ``config`` wakes a device that sleeps (pci-sysfs.c:731).
    """
    return os.access(at + "secondary_bus_number", os.F_OK)


def _vfio(folder: str) -> tuple[bool, str | None]:
    """Whether a vfio driver has the device, and its node."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (hot in an enumeration)
    except OSError:
        return False, None
    for name in names:
        # A folder vfioN, or noiommu-vfioN, is there on a kernel without cdev support too; its `dev` file is not.
        if os.path.exists(f"{folder}/{name}/dev"):  # noqa: PTH110
            return True, f"/dev/vfio/devices/{name}"
    return True, None


_local = threading.local()


def udev_context() -> Any:
    """A context of libudev, for one thread.

    Raises:
        MissingLibraryError: There is no libudev, or no pyudev.
    """
    try:
        import pyudev  # here, so that `import pyiommufd` does not pay for it

        return pyudev.Context()
    except (ImportError, OSError) as error:
        # pyudev looks by ctypes.util.find_library, which asks ldconfig, gcc or ld.
        raise MissingLibraryError(
            f"libudev cannot be loaded ({error}): install libudev1, systemd-libs or eudev, as your distribution calls "
            "it; where it is there, Python finds it by ldconfig or gcc"
        ) from error


def _udev() -> Any:
    """The context of this thread: to find the library pyudev starts a process."""
    context = getattr(_local, "context", None)
    if context is None:
        context = _local.context = udev_context()
    return context


def _enumerate(subsystem: str, **match: str) -> Iterator[Any]:
    enumerator = _udev().list_devices(subsystem=subsystem)
    for attribute, value in match.items():
        enumerator.match_attribute(attribute, value)
    return iter(enumerator)


def list_devices(subsystem: str | None = None) -> list[HostDevice]:
    """Every device that passthrough could concern, ordered by bus and name.

    These are all PCI devices, bridges included, and the devices of the other buses that have an IOMMU group or
    are on a vfio driver, as mediated devices are from the start.

    Args:
        subsystem: Only the devices of this bus, such as ``pci``.

    Raises:
        ValueError: No vfio driver exists for that bus.
        MissingLibraryError: There is no libudev.
    """
    if subsystem is not None and subsystem not in SUBSYSTEMS:
        raise ValueError(f"subsystem {subsystem!r} is none of {', '.join(SUBSYSTEMS)}")
    found = []
    for bus in (subsystem,) if subsystem is not None else SUBSYSTEMS:
        devices = []
        for entry in _enumerate(bus):
            try:
                path = Path(entry.sys_path)  # udev's paths are those of /sys/devices, without links
                device = _read(path, path.name, bus)
            except DeviceNotFoundError:
                continue  # unplugged since
            if bus == "pci" or device.group_id is not None or device.on_vfio:
                devices.append(device)
        found += sorted(devices, key=lambda device: device.name)
    return found


def find_device(name: str) -> HostDevice:
    """The device of that name, or that a disk, an interface or a path belongs to.

    Args:
        name: Its name on its bus (``0000:02:01.0``, or an mdev's UUID), or, where just one device has it, a PCI address
            without the domain (``02:01.0``, ``2:1.0``) or ``vendor:device`` (``1234:11e8``, ``0x1234:0x11e8``);
            libvirt's name (``pci_0000_02_01_0``) or udev's (``pci-0000:02:01.0``); the name of a network interface
            (``eth0``), disk or partition (``nvme0n1p1``), NVMe controller (``nvme0``) or namespace (``ng0n1``), GPU
            (``card0``, ``renderD128``), RDMA device (``mlx5_0``) or vfio device (``vfio0``, ``noiommu-vfio0``); the
            path of a node
            (``/dev/vda``, ``/dev/vfio/devices/vfio0``), or of a link to one; or any path under ``/sys`` that leads to
            the device's folder or below it (``/sys/class/net/eth0``). What has a slash, and is no address, is a path,
            relative to the current folder or not. What an address can be is not looked for among the names of
            interfaces.

    Raises:
        DeviceNotFoundError: No device has that name, or more than one has; the message lists them, as it does the
            devices below what is built on several, such as a bond or a volume of LVM.
        MissingLibraryError: There is no libudev, which ``vendor:device`` is looked up by.
        TypeError: The name is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a device is a str, not {type(name).__name__}")
    text = name.strip()
    if "\0" in text or not text:
        raise DeviceNotFoundError(f"{name!r} is not the name of a device")
    found = list(dict.fromkeys(_candidates(text)))
    if not found:
        error = DeviceNotFoundError(
            f"there is no device {name!r}; a device is named like 0000:02:01.0, 02:01.0 or 1234:11e8, "
            f"or by what is on it: eth0, nvme0n1, /dev/vda{near_names(text)}"
        )
        error.is_unknown = True
        raise error
    if len(found) > 1:
        names = tuple(sorted(device.name for device in found))
        error = DeviceNotFoundError(f"{name!r} is ambiguous: it names {', '.join(names)}")
        error.names = names
        raise error
    return found[0]


def _candidates(text: str) -> list[HostDevice]:
    """The devices that a name or path can mean."""
    if text.startswith("/"):
        return _existing(folders_by_path(text))
    if address := pci_address(text):
        domain, rest = address
        folder = sysfs.SYS / "bus/pci/devices"
        return _existing([folder / f"{domain}:{rest}"] if domain is not None else folder.glob(f"*:{rest}"))
    if match := _VENDOR_DEVICE.fullmatch(text.lower()):
        vendor, device = match.groups()
        return _existing(entry.sys_path for entry in _enumerate("pci", vendor=f"0x{vendor}", device=f"0x{device}"))
    if "/" in text or text in (".", ".."):
        return _existing(folders_by_path(text)) if os.path.exists(text) else []  # noqa: PTH110 - any text
    folders = [sysfs.SYS / "bus" / bus / "devices" for bus in SUBSYSTEMS]
    named = _existing(folder / name for folder in folders for name in (text, text.lower()))
    return named or _existing(folders_by_kernel_name(text))


def _existing(paths: Iterable[Path | str]) -> list[HostDevice]:
    """The devices that have these folders, without those that are not there."""
    found = []
    for path in paths:
        try:
            found.append(from_sys_path(Path(path).resolve(strict=True)))
        except (OSError, ValueError, DeviceNotFoundError):  # a ValueError for characters that no path has
            continue
    return found


def as_device(target: HostDevice | str | Path) -> HostDevice:
    """The device that a caller means, looked up afresh.

    Raises:
        DeviceNotFoundError: There is no such device, or it is gone.
        TypeError: The target is neither a `HostDevice` nor a name or path.
    """
    if isinstance(target, HostDevice):
        return target.refreshed()
    if not isinstance(target, str | Path):
        raise TypeError(f"a device is a HostDevice, or a name or Path of one, not {type(target).__name__}")
    return find_device(str(target))


def as_devices(targets: Iterable[HostDevice | str | Path] | HostDevice | str | Path) -> tuple[HostDevice, ...]:
    """The devices that a caller means, or the one, each once, looked up afresh.

    Raises:
        DeviceNotFoundError, TypeError: As for `as_device`.
    """
    if isinstance(targets, HostDevice | str | Path):
        return (as_device(targets),)
    return tuple(dict.fromkeys(map(as_device, iterate(targets, DEVICES_EXPECTED))))


def find_group(group_id: int) -> Group:
    """The IOMMU group of that number, as it is now.

    Raises:
        DeviceNotFoundError: There is no such group.
        TypeError: The number is not an int.
    """
    path = groups_folder() / str(operator.index(group_id))
    try:
        links = sorted((path / "devices").iterdir())
    except OSError:
        raise DeviceNotFoundError(f"there is no IOMMU group {group_id}") from None
    devices = []
    for link in links:
        try:
            devices.append(from_sys_path(link.resolve()))
        except DeviceNotFoundError:
            continue  # unplugged since
    return Group(
        id=int(group_id),
        type=sysfs.read(path / "type") or "unknown",
        devices=tuple(devices),
        reserved_regions=reserved_regions(group_id),
        is_made_by_vfio=is_made_by_vfio(group_id),
    )


def list_groups() -> list[Group]:
    """Every IOMMU group, by number, also those that VFIO has made for devices that no IOMMU covers."""
    if not groups_folder().is_dir():
        return []
    groups = []
    for number in sorted(int(path.name) for path in groups_folder().iterdir() if path.name.isdigit()):
        try:
            groups.append(find_group(number))
        except DeviceNotFoundError:
            continue  # its last device was unplugged since
    return groups
