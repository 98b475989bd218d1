"""Which processes hold a device open."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from . import sysfs
from .devices import HostDevice


@dataclass(frozen=True, slots=True)
class Holder:
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
        return f"pid {self.pid} ({self.command}) holds {self.node} by {self.how}"


def holders(*devices: HostDevice) -> tuple[Holder, ...]:
    """Who holds the cdevs of these devices, or the legacy node of one of their groups.

    Complete for root only: other users' processes are not visible to a user. Processes of other PID
    namespaces are seen from the initial one.
    """
    nodes: dict[int, str] = {}
    for device in devices:
        paths = [device.vfio_cdev] if device.vfio_cdev else []
        if device.group_id is not None:
            paths += [f"/dev/vfio/{device.group_id}", f"/dev/vfio/noiommu-{device.group_id}"]
        for path in paths:
            number = _device_number(Path(path))
            if number is not None:
                nodes[number] = path
    if not nodes:
        return ()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            found += _held_by(process, nodes)
    return tuple(sorted(found, key=lambda holder: (holder.pid, holder.node, holder.how)))


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


def _held_by(process: Path, nodes: dict[int, str]) -> list[Holder]:
    command = sysfs.read(process / "comm") or "?"
    held = []
    try:
        for fd in (process / "fd").iterdir():
            try:
                status = fd.stat()
            except OSError:
                continue  # closed since
            if stat.S_ISCHR(status.st_mode) and status.st_rdev in nodes:
                held.append(Holder(int(process.name), command, nodes[status.st_rdev], f"fd {fd.name}"))
        # With an fd as well: closing that one alone frees nothing.
        text = (process / "maps").read_text(errors="replace")
        for node in sorted({node for node in nodes.values() if f" {node}\n" in text}):
            held.append(Holder(int(process.name), command, node, "mapping"))
    except OSError:
        pass  # ended since, or not ours to see
    return held
