"""Which processes hold device nodes open, and in which mount namespaces processes are."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from .. import sysfs

# Opens every new disk for a moment, to see what is on it; it does not mind when that fails.
_UDEV = frozenset({"systemd-udevd", "(udev-worker)", "udevd"})

_MAPPED_NODES = re.compile(rb" (/dev/(?!shm/|zero)[^\n]*)\n")


@dataclass(frozen=True, slots=True)
class OpenNode:
    """A device node that is held open.

    Attributes:
        number: The device's number.
        is_block: Whether it is a block device; else a character device.
        holder: By whom: a process, or the kernel's console.
    """

    number: int
    is_block: bool
    holder: str

    @property
    def sys_path(self) -> str:
        """The device's folder, without links; it may not be there."""
        kind = "block" if self.is_block else "char"
        return os.path.realpath(f"{sysfs.SYS}/dev/{kind}/{os.major(self.number)}:{os.minor(self.number)}")


@dataclass(slots=True)
class Processes:
    """The machine's processes.

    Attributes:
        open_nodes: The device nodes that they hold open.
        namespaces: The number and the command of a process in each mount namespace that is neither init's nor this
            process's.
    """

    open_nodes: list[OpenNode] = field(default_factory=list)
    namespaces: list[tuple[int, str]] = field(default_factory=list)


def look_at_processes(*, mappings: bool) -> Processes:
    """Look at all processes. Complete for root, and in the initial PID namespace, only.

    Args:
        mappings: Find the nodes as well that are mapped into memory and have no open descriptor. That takes longer.
    """
    found = Processes()
    found.open_nodes += _consoles()
    seen = {_namespace("self"), _namespace("1"), None}
    ours = _namespace("self")
    try:
        pids = [name for name in os.listdir(sysfs.PROC) if name.isdigit()]  # noqa: PTH208 (hot)
    except OSError:
        return found
    for pid in sorted(pids, key=int):
        command = sysfs.read(sysfs.PROC / pid / "comm") or "?"
        namespace = _namespace(pid)
        if namespace not in seen:
            seen.add(namespace)
            found.namespaces.append((int(pid), command))
        if command in _UDEV:
            continue
        nodes = _descriptors(pid, foreign=namespace != ours)
        if mappings:
            nodes |= _mappings(pid)
        holder = f"pid {pid} ({command})"
        found.open_nodes += [OpenNode(number, is_block, holder) for number, is_block in sorted(nodes)]
    return found


def _namespace(process: str) -> str | None:
    try:
        return os.readlink(sysfs.PROC / process / "ns/mnt")  # noqa: PTH115
    except OSError:
        return None


def _descriptors(pid: str, *, foreign: bool) -> set[tuple[int, bool]]:
    folder = f"{sysfs.PROC}/{pid}/fd"
    found = set()
    try:
        names = os.listdir(folder)  # noqa: PTH208 (hot)
    except OSError:
        return set()  # ended since, or not ours to see
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")  # noqa: PTH115
            # A stat of any other file may wait for a server that does not answer. Of a container's node the path is
            # that within the filesystem which the container has on /dev.
            if "/dev/" in target or (foreign and target.startswith("/")):
                found |= _node(f"{folder}/{name}")
        except OSError:
            continue  # closed since
    return found


def _mappings(pid: str) -> set[tuple[int, bool]]:
    try:
        text = (sysfs.PROC / pid / "maps").read_bytes()
    except OSError:
        return set()
    found = set()
    for name in set(_MAPPED_NODES.findall(text)):
        try:
            found |= _node(os.fsdecode(name))
        except OSError:
            continue  # unplugged, or another namespace's
    return found


def _node(path: str) -> set[tuple[int, bool]]:
    status = os.stat(path)  # noqa: PTH116
    is_block = stat.S_ISBLK(status.st_mode)
    return {(status.st_rdev, is_block)} if is_block or stat.S_ISCHR(status.st_mode) else set()


def _consoles() -> list[OpenNode]:
    """What the kernel's own messages go to: no process holds it, and it is in use."""
    found = []
    for line in (sysfs.read(sysfs.PROC / "consoles") or "").splitlines():
        # Name, flags, number (Linux 7.3, fs/proc/consoles.c); some have no number.
        match = re.search(r"\s(\d+):(\d+)$", line)
        if match:
            number = os.makedev(int(match[1]), int(match[2]))
            found.append(OpenNode(number, False, f"the kernel's console {line.split()[0]}"))
    return found


def console_names() -> list[str]:
    """The consoles that the kernel's messages go to, such as ``ttyS0``."""
    text = sysfs.read(Path(sysfs.PROC) / "consoles") or ""
    return [line.split()[0] for line in text.splitlines() if line.strip()]
