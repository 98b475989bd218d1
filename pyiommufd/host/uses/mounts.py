"""What is mounted, in every mount namespace, and what is swapped to."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import sysfs
from .folders import number_of

_REMOTE = frozenset({"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"})


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of a mount table.

    Attributes:
        number: The device number of the filesystem; one of its own where no single disk is behind it.
        point: Where it is mounted.
        kind: The type of the filesystem.
        source: What was mounted, such as ``/dev/sda1``.
        options: The filesystem's options.
        owner: Whose table it is, where that is neither init's nor this process's; else empty.
    """

    number: int
    point: str
    kind: str
    source: str
    options: tuple[str, ...]
    owner: str = ""

    @property
    def place(self) -> str:
        """The mount point, and in whose eyes."""
        return f"{self.point} of {self.owner}" if self.owner else self.point

    @property
    def is_root(self) -> bool:
        """Whether it is the root of init or of this process."""
        return self.point == "/" and not self.owner


def mount_table(namespaces: Iterable[tuple[int, str]]) -> list[Mount]:
    """The mounts that init, this process, and one process of each other mount namespace see.

    Args:
        namespaces: The number and the command of one process of each of these.
    """
    found = dict.fromkeys(mounts_of("self", "") + mounts_of("1", ""))
    numbers = {mount.number for mount in found}
    for pid, command in namespaces:
        # What a container has from the host is known by the host's own mounts already.
        others = [mount for mount in mounts_of(str(pid), f"pid {pid} ({command})") if mount.number not in numbers]
        found.update(dict.fromkeys(others))
    return list(found)


def mounts_of(process: str, owner: str = "") -> list[Mount]:
    """The mount table of a process, as proc_pid_mountinfo(5) has it."""
    found = []
    for line in sysfs.lines(sysfs.PROC / process / "mountinfo"):
        # proc_pid_mountinfo(5): … major:minor root mount-point options … - type source options
        left, _, right = line.partition(" - ")
        words, more = left.split(" "), right.split(" ")
        number = number_of(words[2]) if len(words) > 4 and len(more) > 2 else None
        if number is not None:
            options = tuple(more[2].split(","))
            found.append(Mount(number, unescape(words[4]), more[0], unescape(more[1]), options, owner))
    return found


def is_remote(kind: str) -> bool:
    """Whether filesystems of a type have a server, which may not answer."""
    return kind in _REMOTE or kind.startswith("fuse")


def swap_areas() -> list[tuple[str, int]]:
    """Each swap area's path, and the number of the device that it is, or of the filesystem that it is on."""
    found = []
    for line in sysfs.lines(sysfs.PROC / "swaps")[1:]:
        path = unescape(line.split(" ")[0])
        number = number_behind(path)
        if number is not None:
            found.append((path, number))
    return found


def loop_devices() -> list[tuple[Path, int]]:
    """The loop devices, and the numbers of the disks that their files are, or lie on."""
    found = []
    for path in (sysfs.SYS / "class/block").glob("loop*/loop/backing_file"):
        backing = sysfs.read(path)
        number = number_behind(backing) if backing else None
        if number is not None:
            found.append((path.parent.parent.resolve(), number))
    return found


def number_behind(path: str) -> int | None:
    """The number of a block device, or of the device that a file's filesystem is on; None for no such path."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev


def block_number(path: str) -> int | None:
    """The number of a block device's node."""
    if not path.startswith("/dev/"):
        return None  # a server's name, or a path that may lead to a server that does not answer
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def unescape(text: str) -> str:
    """Undo the octal escapes in which /proc writes blanks."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
