"""Which processes hold a device open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.uses.processes import DELETED, Processes, look_at_processes, process_words
from pyiommufd.printable import OneLine, listed, printable


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
    return holders_among(look_at_processes(mappings=True), devices) if devices else ()


def holders_among(seen: Processes, devices: Iterable[HostDevice]) -> tuple[Holder, ...]:
    """The same, of processes that have been looked at already, with their mappings."""
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
    opened = [(one, node) for number, node in nodes.items() for one in seen.nodes.get((stat.S_IFCHR, number), ())]
    # A device that is being removed has no node any more, in sysfs or in /dev, while a process that holds it blocks the
    # removal: such holders are found by the device's folder, which fdinfo shows, or by the path that its node had.
    folders = {str(device.sys_path) for device in devices}
    for one in seen.vfio:
        path = one.path.removesuffix(DELETED)
        if one.number not in nodes and (one.device in folders if one.device else path in gone):
            opened.append((one, path))
    # With an fd as well: closing that one alone frees nothing.
    mapped = {(pid, node) for node in {*nodes.values(), *gone} for pid in _mapping(seen, node)}
    mapped |= {(one.pid, node) for one, node in opened if one.pid in _mapping(seen, node)}
    found = [Holder(one.pid, seen.commands[one.pid], node, f"fd {one.fd}") for one, node in opened]
    found += [Holder(pid, seen.commands[pid], node, "mapping") for pid, node in mapped]
    return tuple(sorted(found, key=lambda holder: (holder.pid, holder.node, holder.how)))


def _mapping(processes: Processes, node: str) -> set[int]:
    return processes.by_path.get(node, set()) | processes.by_path.get(node + DELETED, set())


def in_words(found: Iterable[Holder]) -> list[str]:
    """Holders for a message: each process once for a node, with what it has of it."""
    ways: dict[tuple[int, str, str], list[str]] = {}
    for holder in found:
        ways.setdefault((holder.pid, holder.command, holder.node), []).append(holder.how)
    return [str(Holder(*whose, listed(how))) for whose, how in ways.items()]


def group_node(device: HostDevice) -> str:
    """The legacy node of a device's group, where it has one."""
    return f"/dev/vfio/{'noiommu-' if device.without_iommu else ''}{device.group_id}"


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
