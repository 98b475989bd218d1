"""Which processes hold a device open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.namespaces import namespace
from pyiommufd.host.uses.processes import descriptors, process_words
from pyiommufd.printable import OneLine, listed, printable

_DELETED = " (deleted)"  # what the kernel adds to the name of a node that has been removed


@dataclass(frozen=True, slots=True, repr=False)
class Holder(OneLine):
    """A process that keeps a device from being bound, unbound or unplugged.

    Attributes:
        pid: The process.
        command: Its command name.
        node: What it holds: the path of a vfio cdev or of a legacy group.
        how: By what: ``fd 7``, or ``mapping`` for mapped registers, which hold it with the fd closed as well.
    """

    pid: int
    command: str
    node: str
    how: str

    def __str__(self) -> str:
        return printable(f"{process_words(self.pid, self.command)} holds {self.node} by {self.how}")

    @property
    def own_fd(self) -> int | None:
        """The fd, where it is this very process that holds the node by one."""
        return int(self.how.removeprefix("fd ")) if self.pid == os.getpid() and self.how.startswith("fd ") else None


def holders(*devices: HostDevice) -> tuple[Holder, ...]:
    """Who holds the cdevs of these devices, or the legacy node of one of their groups.

    Complete for root only: other users' processes are not visible to a user. Processes of other PID
    namespaces are seen from the initial one.
    """
    nodes: dict[int, str] = {}
    gone: set[str] = set()
    for device in devices:
        paths = [device.vfio_cdev] if device.vfio_cdev else []
        if device.group_id is not None:
            paths.append(group_node(device))
        for path in paths:
            number = _device_number(Path(path))
            if number is not None:
                nodes[number] = path
            elif path == device.vfio_cdev:
                gone.add(path)
    wanted = _Wanted(nodes, gone, {str(device.sys_path) for device in devices})
    found = []
    for process in sysfs.PROC.iterdir():
        if devices and process.name.isdigit():
            found += _held_by(process, wanted)
    return tuple(sorted(found, key=lambda holder: (holder.pid, holder.node, holder.how)))


def in_words(found: Iterable[Holder]) -> list[str]:
    """Holders for a message: each process once for a node, with what it has of it."""
    ways: dict[tuple[int, str, str], list[str]] = {}
    for holder in found:
        ways.setdefault((holder.pid, holder.command, holder.node), []).append(holder.how)
    return [str(Holder(*whose, listed(how))) for whose, how in ways.items()]


def group_node(device: HostDevice) -> str:
    """The legacy node of a device's group, where it has one."""
    return f"/dev/vfio/{'noiommu-' if device.without_iommu else ''}{device.group_id}"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to look for.

    A device that is being removed has no node any more, in sysfs or in /dev, while a process that holds it blocks the
    removal: such holders are found by the device's folder, which fdinfo shows, or by the path that its node had.
    """

    nodes: dict[int, str]
    gone: set[str]
    sys_paths: set[str]


def _device_number(path: Path) -> int | None:
    # By sysfs where it says so, since a container may lack the node.
    if path.parent.name == "devices":
        text = sysfs.read(sysfs.SYS / "class/vfio-dev" / path.name / "dev")
    else:
        text = sysfs.read(sysfs.SYS / "class/vfio" / path.name / "dev")
    if not text:
        return None
    major, minor = text.split(":")
    return os.makedev(int(major), int(minor))


def _held_by(process: Path, wanted: _Wanted) -> list[Holder]:
    command = sysfs.read(process / "comm") or "?"
    held = []
    names = {*wanted.nodes.values(), *wanted.gone}
    foreign = namespace(process.name, "mnt") != namespace("self", "mnt")
    for fd, target, status in descriptors(process.name, foreign=foreign):
        node = _node_of(process, fd, target, status, wanted) if status and stat.S_ISCHR(status.st_mode) else None
        if node is not None:
            held.append(Holder(int(process.name), command, node, f"fd {fd}"))
            names.add(node)
    try:
        # With an fd as well: closing that one alone frees nothing.
        text = os.fsdecode((process / "maps").read_bytes())
        for node in sorted({node for node in names if f" {node}\n" in text or f" {node}{_DELETED}\n" in text}):
            held.append(Holder(int(process.name), command, node, "mapping"))
    except OSError:
        pass  # ended since, or not ours to see
    return held


def _node_of(process: Path, fd: str, link: str, status: os.stat_result, wanted: _Wanted) -> str | None:
    if status.st_rdev in wanted.nodes:
        return wanted.nodes[status.st_rdev]
    if not link.startswith("/dev/vfio/devices/"):
        return None
    path = link.removesuffix(_DELETED)
    # Newer kernels say which device it is (Linux 7.3, drivers/vfio/vfio_main.c, vfio_device_show_fdinfo).
    for line in sysfs.lines(process / "fdinfo" / fd):
        key, _, value = line.partition(":")
        if key == "vfio-device-syspath":
            return path if value.strip() in wanted.sys_paths else None
    return path if path in wanted.gone else None
