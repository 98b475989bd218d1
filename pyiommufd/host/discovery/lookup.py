"""From a name or path to the device that it is about: interfaces, disks, nodes, and whatever is below a device."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from pyiommufd.errors import DeviceNotFoundError
from pyiommufd.host import sysfs
from pyiommufd.nearest import did_you_mean
from pyiommufd.printable import listed, printable

SUBSYSTEMS = ("pci", "mdev", "platform", "amba", "fsl-mc", "ap", "ccw", "cdx")
"""The buses that have devices with a vfio driver (Linux 7.3, drivers/vfio)."""

# Also as udev (ID_PATH), lshw and devlink write it.
_ADDRESS = re.compile(r"(?:pci[-@/])?(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])")
_LIBVIRT = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])")
_CDEV = re.compile(r"/dev/vfio/devices/((?:noiommu-)?vfio[0-9]+)")
_GROUP_NODE = re.compile(r"(?:noiommu-)?([0-9]+)")
_NVME_SUBSYSTEM = re.compile(r".*/nvme-subsystem/[^/]+")
_NVME_CONTROLLER = re.compile(r"nvme[0-9]+")

CLASSES = {
    "net": "the interface",
    "block": "the disk",
    "nvme": "the NVMe controller",
    "nvme-generic": "the NVMe namespace",
    "drm": "the GPU",
    "infiniband": "the RDMA device",
    "vfio-dev": "the vfio device",
}
"""The classes in sysfs whose names stand for a device, and what such a name is."""


def pci_address(text: str) -> tuple[str | None, str] | None:
    """A PCI address as the kernel writes it: the domain, where one is given, and the rest; None for what is none.

    Args:
        text: Such as ``0000:00:03.0``, ``00:3.0``, udev's ``pci-0000:00:03.0``, or libvirt's ``pci_0000_00_03_0``.
    """
    match = _ADDRESS.fullmatch(text.lower()) or _LIBVIRT.fullmatch(text.lower())
    if match is None:
        return None
    domain, bus, slot, function = match.groups()
    rest = f"{bus.zfill(2)}:{slot.zfill(2)}.{function}"
    return (None if domain is None else f"{int(domain, 16):04x}"), rest


def can_be_bound(folder: str) -> bool:
    """Whether the device of a bus other than PCI in this folder is one that could do DMA, or is on vfio.

    A kernel without VFIO's groups (CONFIG_VFIO_GROUP) gives a mediated device no IOMMU group.
    """
    return os.path.exists(f"{folder}/iommu_group") or os.path.exists(f"{folder}/vfio-dev")  # noqa: PTH110 (hot)


def device_folders(path: str, known: Collection[str] = ()) -> list[str]:
    """The folders of the devices that a folder or file of sysfs belongs to: the nearest above it, or itself.

    That is one that `list_devices` would list, where there is any: below a PCI function may be devices of other buses
    that do no DMA of their own, such as the slot of a card reader (Linux 7.3, drivers/misc/cardreader/rtsx_pcr.c).

    Several for what an NVMe subsystem has by several controllers: with native multipath its disks hang below no device
    (Linux 7.3, drivers/nvme/host/core.c, nvme_init_subsystem).

    Args:
        path: The path, without links.
        known: Folders that are known to be devices'.
    """
    above, without_iommu = path, ""
    while above:
        bus = "pci" if above in known else sysfs.link_name(f"{above}/subsystem")
        if bus == "pci" or (bus in SUBSYSTEMS and can_be_bound(above)):
            return [above]
        if bus in SUBSYSTEMS:
            without_iommu = without_iommu or above
        above = above.rpartition("/")[0]
    if without_iommu:
        return [without_iommu]
    match = _NVME_SUBSYSTEM.match(path)
    if match is None or not os.path.isdir(match[0]):  # noqa: PTH112 (hot)
        return []
    controllers = [name for name in sorted(os.listdir(match[0])) if _NVME_CONTROLLER.fullmatch(name)]  # noqa: PTH208
    found = [folder for name in controllers for folder in device_folders(os.path.realpath(f"{match[0]}/{name}"))]
    return list(dict.fromkeys(found))


def folders_by_path(text: str) -> list[str]:
    """The folders of the devices that a path means: a node's below /dev, or a path below /sys.

    Raises:
        DeviceNotFoundError: There is no such path, or it belongs to no device; the message says what it is.
    """
    node = _CDEV.fullmatch(text)
    try:
        # A container may have the device and not the node.
        path = os.path.realpath(sysfs.SYS / "class/vfio-dev" / node[1] if node else text, strict=True)
        status = Path(path).stat()
        mode, number = status.st_mode, f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            kind = "block" if stat.S_ISBLK(mode) else "char"
            path = os.path.realpath(sysfs.SYS / "dev" / kind / number)
        elif not f"{path}/".startswith(f"{os.path.realpath(sysfs.SYS)}/"):
            what = "folder" if stat.S_ISDIR(mode) else "file"
            raise DeviceNotFoundError(
                f"{printable(text)} is a {what}, not a device's node or a path in {sysfs.SYS} "
                "(findmnt -T says which disk it is on)"
            )
    except FileNotFoundError:
        near = near_names(text.rstrip("/").rpartition("/")[2])
        error = DeviceNotFoundError(f"there is no {printable(text)}{near}")
        error.is_unknown = True
        raise error from None
    except (OSError, ValueError) as failure:  # the latter for characters that no path has
        reason = failure.strerror if isinstance(failure, OSError) else "no path"
        raise DeviceNotFoundError(f"{printable(text)}: {reason}") from None
    if found := device_folders(path):
        return found
    raise DeviceNotFoundError(_why_none(text, path))


def folders_by_kernel_name(name: str) -> list[str]:
    """The folders of the devices that an interface, disk, partition, NVMe controller or vfio device is of; or none.

    Raises:
        DeviceNotFoundError: Such a thing belongs to no device, or two have that name; the message says what it is.
    """
    if "/" in name or name in (".", ".."):
        return []
    links = {kind: sysfs.SYS / "class" / kind / name for kind in CLASSES}
    paths = {kind: os.path.realpath(link) for kind, link in links.items() if _is_folder(link)}
    if len(paths) > 1:
        meanings = " and ".join(f"{CLASSES[kind]} {links[kind]}" for kind in paths)
        raise DeviceNotFoundError(f"{name!r} is ambiguous: it names {printable(meanings)}; write that path")
    for path in paths.values():
        if found := device_folders(path):
            return found
        raise DeviceNotFoundError(_why_none(name, path))
    return []


def near_names(text: str) -> str:
    """Which devices, or interfaces and disks of devices, are named much like that, in words; empty: none."""
    names = [
        folder.name
        for bus in SUBSYSTEMS
        for folder in sorted((sysfs.SYS / "bus" / bus / "devices").glob("*"))
        if bus == "pci" or can_be_bound(str(folder))
    ]
    for kind in CLASSES:
        links = sorted((sysfs.SYS / "class" / kind).glob("*"))
        names += [printable(link.name) for link in links if device_folders(os.path.realpath(link))]
    domain, rest = pci_address(text) or (None, text)
    return did_you_mean(rest if domain is None else f"{domain}:{rest}", names)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False


def _why_none(text: str, path: str) -> str:
    """Why something belongs to no device, and what to name in its place.

    Args:
        text: What the caller has called it.
        path: Where it is in sysfs, without links.
    """
    folder, shown = Path(path), printable(text)
    group = _GROUP_NODE.fullmatch(folder.name) if folder.parent.name in ("iommu_groups", "vfio") else None
    if group is not None:
        links = (sysfs.SYS / "kernel/iommu_groups" / group[1] / "devices").glob("*")
        members = sorted(link.name for link in links)
        return f"{shown} is IOMMU group {group[1]}, and no device: name one of {listed(members, most=20)}"
    alias = sysfs.read(folder / "dm/name")
    what = shown if alias is None or alias in text else f"{shown} ({printable(alias)})"
    found: dict[str, None] = {}
    for lowest in dict.fromkeys(_lowest(folder, set())):
        addresses = [one.rpartition("/")[2] for one in device_folders(str(lowest))]
        if addresses:
            found[f"{printable(lowest.name)} ({listed(addresses)})"] = None
    if found:
        return f"{what} is no device of its own: it is built on {listed(list(found), most=20)}; name what is meant"
    return f"{what} belongs to no PCI device, nor to another that can have a vfio driver"


def _lowest(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """The disks and partitions, or interfaces, that one is built on in the end; itself where it is on nothing."""
    if folder in seen:
        return
    seen.add(folder)
    # What a partition of an array is on stands at the array.
    whole = folder.parent if (folder / "partition").exists() and not device_folders(str(folder)) else folder
    below = [path.resolve() for path in sorted([*whole.glob("slaves/*"), *whole.glob("lower_*")])]
    if backing := sysfs.read(whole / "loop/backing_file"):
        below += _behind_file(backing)
    if not below:
        yield folder
    for path in below:
        yield from _lowest(path, seen)


def _behind_file(file: str) -> Iterator[Path]:
    """The disk that a file is, or is on, as far as its filesystem has that one's number."""
    try:
        status = Path(file).stat()
    except OSError:
        return
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    path = sysfs.SYS / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    if path.exists():
        yield path.resolve()
