"""What the host does with a device's disks, through every layer that is built on them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import Refusal
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.uses.folders import (
    fibre_channel_controllers,
    fibre_channel_ports,
    is_below,
    join_words,
    node_name,
    number_of,
)
from pyiommufd.host.uses.mounts import Mount, block_number, open_block
from pyiommufd.host.uses.snapshot import MachineSnapshot

_PATIENCE = 0.5


@dataclass(frozen=True, slots=True)
class Block:
    """A block device: a disk of the device, or what is built on one.

    Attributes:
        folder: Its folder, without links.
        below: The names of what it stands on, the device's own disk first; empty for that one.
    """

    folder: Path
    below: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The kernel's name of it."""
        return self.folder.name

    @property
    def label(self) -> str:
        """Its name with the one that it goes by, such as ``dm-0 (vg-root)``."""
        alias = sysfs.read(self.folder / "dm/name")
        return f"{self.name} ({alias})" if alias else self.name

    @property
    def number(self) -> int | None:
        """The device number; None for what has no node, as the path of a multipath disk."""
        return number_of(sysfs.read(self.folder / "dev"))

    @property
    def is_own(self) -> bool:
        """Whether it is a disk or a partition, and not something that is built on these."""
        return not self.below or (self.folder / "partition").exists()

    @property
    def by_way_of(self) -> str:
        """For a sentence: through which layers."""
        layers = (*self.below, self.name)
        return f", by way of {join_words(list(layers), most=9)}" if len(layers) > 1 else ""


def blocks(device: HostDevice, snapshot: MachineSnapshot) -> dict[str, Block]:
    """The device's disks and partitions, and all that is built on them, by name."""
    pending = [Block(path) for path in _disks(snapshot.folders(device))]
    found: dict[str, Block] = {}
    while pending:
        block = pending.pop(0)
        if block.name in found or not block.folder.is_dir():
            continue
        found[block.name] = block
        chain = (*block.below, block.name)
        above = [path for path in block.folder.iterdir() if (path / "partition").exists()]
        if (block.folder / "holders").is_dir():
            above += [path.resolve() for path in (block.folder / "holders").iterdir()]
        number = block.number
        above += [folder for folder, behind in snapshot.loops if behind == number]
        pending += [Block(path, chain) for path in sorted(above)]
    return found


def _disks(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.name == "block":
            yield from sorted(path.resolve() for path in folder.iterdir())
        if subsystem := _nvme_subsystem(folder):
            yield from sorted(path for path in subsystem.glob("nvme*n*") if (path / "dev").exists())
        elif sysfs.link_name(folder / "subsystem") == "block" and not (folder / "partition").exists():
            yield folder


def _nvme_subsystem(folder: Path) -> Path | None:
    """The subsystem of an NVMe controller: with native multipath a namespace hangs below that one."""
    if not folder.name.startswith("nvme") or not (folder / "subsysnqn").exists():
        return None
    found = (sysfs.SYS / "class/nvme-subsystem").glob(f"*/{folder.name}")
    return next((path.parent.resolve() for path in found), None)


def shared_nodes(snapshot: MachineSnapshot, device: HostDevice) -> list[Path]:
    """The folders of the device's character devices that are not below it.

    Those of NVMe namespaces with native multipath, ``ngXnY``, are beside their disks (Linux 7.3,
    drivers/nvme/host/multipath.c, nvme_add_ns_head_cdev), and controllers behind Fibre Channel are by themselves.
    """
    subsystems = filter(None, map(_nvme_subsystem, snapshot.folders(device)))
    nodes = [path for subsystem in subsystems for path in subsystem.glob("ng*n*") if (path / "dev").exists()]
    return nodes + fibre_channel_controllers(snapshot.folders(device))


def storage_refusals(device: HostDevice, snapshot: MachineSnapshot, found: dict[str, Block]) -> Iterator[Refusal]:
    """Filesystems, swap areas, membership in RAID arrays and device mapper's devices, and what others are served.

    Args:
        device: The device.
        snapshot: At the machine.
        found: What `blocks` has found of the device.
    """
    numbers = {block.number: block for block in found.values() if block.number is not None}
    yield from _layers(device, found)
    for holding in _filesystems(numbers, snapshot).values():
        yield _mounted(device, [mount for mount, _ in holding], holding[0][1][0].by_way_of)
    if unlisted := _unlisted_btrfs(found, snapshot):
        names = join_words([block.label for block in unlisted])
        yield Refusal(device.name, "mounted", f"a filesystem of btrfs that is mounted is on {names}")
    yield from _shares(device, snapshot)
    for path, number in snapshot.swaps if numbers else ():
        if number in numbers:
            yield Refusal(device.name, "swap", f"it holds the swap area {path}{numbers[number].by_way_of}")
    ports = fibre_channel_ports(snapshot.folders(device))
    if ports & snapshot.served_ports:
        yield Refusal(device.name, "held", "disks are served to other machines by its Fibre Channel port")
    if (numbers or ports) and snapshot.are_exports_hidden:
        reason = "whether one of its disks is served to other machines cannot be seen"
        where = "mount configfs on /sys/kernel/config, or look on the host"
        yield Refusal(device.name, "unseen", f"{reason}: {where}")
    for export in snapshot.exports:
        if export.number in numbers:
            block = numbers[export.number]
            yield Refusal(device.name, "held", f"{block.label} is served as {export.what}{block.by_way_of}")
        elif export.controller and is_below(device, export.controller):
            yield Refusal(device.name, "held", f"it is served as {export.what}")
        elif numbers and export.number is None and not export.controller:
            reason = f"whether {export.what} serves one of its disks cannot be told: {export.path} is not here"
            yield Refusal(device.name, "unseen", f"{reason}; look from where it is")


def _layers(device: HostDevice, found: dict[str, Block]) -> Iterator[Refusal]:
    """What is built on the disks, by what it stands on."""
    built: dict[tuple[str, str], list[str]] = {}
    for block in found.values():
        if block.is_own:
            continue
        kind = next((word for word in ("md", "dm") if (block.folder / word).is_dir()), "held")
        # A loop device on a file stands for no more than the filesystem that the file is on.
        backing = sysfs.read(block.folder / "loop/backing_file")
        if backing is not None and backing != node_name(found[block.below[-1]].folder):
            continue
        built.setdefault((kind, block.below[-1]), []).append(block.label)
    for (kind, below), names in built.items():
        what = {"md": "a member of the RAID array", "dm": "under device mapper's"}.get(kind, "under")
        plural = "s" if kind == "md" and len(names) > 1 else ""
        yield Refusal(device.name, kind, f"{found[below].label} is {what}{plural} {join_words(names)}")


def _filesystems(
    numbers: dict[int, Block], snapshot: MachineSnapshot
) -> dict[tuple[int, str], list[tuple[Mount, list[Block]]]]:
    """The mounts that are on these, with those that each is on; by filesystem, and by who sees it."""
    found: dict[tuple[int, str], list[tuple[Mount, list[Block]]]] = {}
    spans = _spans() if numbers else {}
    for mount in snapshot.mounts if numbers else ():
        # The device number is reliable; the source is free text, chosen by whoever mounts in a user namespace.
        members = {mount.number} & numbers.keys()
        if not members:
            behind = [number for number in map(block_number, mount.sources) if number is not None]
            members = {one for number in behind for one in spans.get(number, {number}) if one in numbers}
        if members:
            on = [block for number, block in numbers.items() if number in members]
            found.setdefault((mount.number, mount.owner), []).append((mount, on))
    return found


def _spans() -> dict[int, set[int]]:
    """For each disk of a filesystem that spans several all of these: a mount table names one alone."""
    found = {}
    for folder in (sysfs.SYS / "fs/btrfs").glob("*/devices"):
        numbers = [number_of(sysfs.read(path / "dev")) for path in folder.iterdir()]
        members = {number for number in numbers if number is not None}
        found.update(dict.fromkeys(members, members))
    return found


def _unlisted_btrfs(found: dict[str, Block], snapshot: MachineSnapshot) -> list[Block]:
    """Disks of mounted btrfs filesystems that are in no mount table; the kernel lists all disks of mounted ones."""
    numbers = {block.number: block for block in found.values() if block.number is not None}
    listed = {block.name for holding in _filesystems(numbers, snapshot).values() for _, on in holding for block in on}
    members = set(_spans() if numbers else ())
    return [block for number, block in numbers.items() if number in members and block.name not in listed]


def _mounted(device: HostDevice, mounts: list[Mount], by_way_of: str = "") -> Refusal:
    """The refusal for one filesystem."""
    points = join_words(sorted({mount.place for mount in mounts}, key=lambda place: (len(place), place)))
    if any(mount.is_root for mount in mounts):
        return Refusal(device.name, "root", f"it holds the root filesystem, mounted on {points}{by_way_of}")
    return Refusal(device.name, "mounted", f"it holds the filesystem mounted on {points}{by_way_of}")


def _shares(device: HostDevice, snapshot: MachineSnapshot) -> Iterator[Refusal]:
    """Filesystems that a virtual machine has from its host: by 9p, or by virtiofs."""
    tags: dict[str, set[str]] = {}
    for folder in snapshot.folders(device):
        tag = sysfs.read(folder / "mount_tag")
        if tag is not None:
            tags.setdefault("9p", set()).add(tag.strip("\0"))
        if sysfs.link_name(folder / "driver") == "virtiofs":
            tags.setdefault("virtiofs", set()).update(_virtiofs_tags(folder))
    by_number: dict[int, list[Mount]] = {}
    for mount in snapshot.mounts if tags else ():
        known = tags.get(mount.kind)
        if known is None or (known and mount.source not in known):
            continue
        if mount.kind == "9p" and "trans=virtio" not in mount.options:
            continue
        by_number.setdefault(mount.number, []).append(mount)
    for mounts in by_number.values():
        yield _mounted(device, mounts)


def _virtiofs_tags(folder: Path) -> Iterator[str]:
    """The tag of a virtiofs device; nothing before Linux 6.9, which then stands for any."""
    for path in (sysfs.SYS / "fs/virtiofs").glob("*/tag"):
        text = sysfs.read(path)
        if text is not None and (path.parent / "device").resolve() == folder:
            yield text


def hidden_refusals(device: HostDevice, snapshot: MachineSnapshot, found: dict[str, Block]) -> Iterator[Refusal]:
    """Disks that the kernel holds exclusively without showing why, for example for ZFS or an external journal.

    Whoever relies on a disk opens it exclusively, itself or by a partition, and the kernel refuses a second such open.
    Only disks without another known use are probed.

    Args:
        device: The device.
        snapshot: At the machine.
        found: What `blocks` has found of the device.
    """
    numbers = {block.number: block for block in found.values() if block.number is not None}
    used = {block.name for holding in _filesystems(numbers, snapshot).values() for _, on in holding for block in on}
    used |= {numbers[number].name for _, number in snapshot.swaps if number in numbers}
    used |= {block.name for block in _unlisted_btrfs(found, snapshot)}
    used |= {name for name, block in found.items() if str(block.folder) in snapshot.open_files}
    # A layer in use makes everything below it used; what else is built on that is not thereby used.
    used |= {name for block in found.values() if block.name in used or not block.is_own for name in block.below}
    for block in found.values():
        # If the exclusive open of a whole disk succeeds, its partitions are unused as well.
        if block.name in used or (block.below and block.is_own and block.below[-1] not in used):
            continue
        if block.number is not None and (refusal := _probe_exclusive_open(device, block)):
            yield refusal


def _probe_exclusive_open(device: HostDevice, block: Block) -> Refusal | None:
    """Check whether the kernel holds a disk exclusively, by opening it so."""
    node = node_name(block.folder)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            # Nothing is read; closing a disk that was opened read-only does not make udev probe it again.
            with open_block(block.number, node, os.O_EXCL):
                return None
        except OSError as error:
            if error.errno != errno.EBUSY:
                reason = f"whether the kernel holds {node} exclusively cannot be seen: {error.strerror}"
                where = "; look from the host, as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
                return Refusal(device.name, "unseen", reason + where)
        # Another process may be making the same check right now.
        if time.monotonic() > end:
            return Refusal(device.name, "held", f"the kernel holds {node} exclusively, and does not show what for")
        time.sleep(0.02)
