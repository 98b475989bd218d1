"""What is mounted, in every mount namespace, and what is swapped to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.uses.folders import node_name, number_of

# Filesystems that have a device number of their own, not a disk's: what was mounted tells which disks are behind. None
# of these can be mounted in a user namespace, where the source is free text.
_OWN_NUMBER = frozenset({"btrfs", "bcachefs"})

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
    def sources(self) -> list[str]:
        """The disks that it is mounted from, where its number is none of a disk's."""
        # bcachefs names all its disks.
        return self.source.split(":") if self.kind in _OWN_NUMBER else []

    @property
    def is_root(self) -> bool:
        """Whether it is the root of init or of this process."""
        return self.point == "/" and not self.owner


def mount_table(namespaces: Iterable[tuple[str, str]]) -> list[Mount]:
    """The mounts that init, this process, and one process of each other mount namespace see.

    Args:
        namespaces: One process of each of these: its folder below /proc, and in words.
    """
    found = dict.fromkeys(mounts_of("self", "") + mounts_of("1", ""))
    numbers = {mount.number for mount in found}
    for process, whose in namespaces:
        # What a container has from the host is known by the host's own mounts already.
        others = [mount for mount in mounts_of(process, whose) if mount.number not in numbers]
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
        folder = path.parent.parent.resolve()
        number = _number_behind_loop(folder)
        if number is None:
            number = next(map(number_behind, sysfs.lines(path)), None)
        if number is not None:
            found.append((folder, number))
    return found


def _number_behind_loop(folder: Path) -> int | None:
    """What the kernel says is behind a loop device, whose file may have another path here, or none."""
    # LOOP_GET_STATUS64; of struct loop_info64 the number of the file's filesystem, its inode, the number of the device
    # where the file is one (Linux 7.3, include/uapi/linux/loop.h, drivers/block/loop.c).
    try:
        with open_block(number_of(sysfs.read(folder / "dev")), node_name(folder)) as fd:
            status = fcntl.ioctl(fd, 0x4C05, bytes(232))
    except OSError:
        return None
    device, _, block = struct.unpack_from("=QQQ", status)
    return int(block or device)


def number_behind(path: str) -> int | None:
    """The number of a block device, or of the device that a file's filesystem is on; None for no such path."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return _number_by_name(path)
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev


def block_number(path: str) -> int | None:
    """The number of a block device, by its node, or by its name where the node is not to be found here."""
    if not path.startswith("/dev/"):
        return None  # a server's name, or a path that may lead to a server that does not answer
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return _number_by_name(path)
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _number_by_name(path: str) -> int | None:
    name = path.removeprefix("/dev/").replace("/", "!")
    return number_of(sysfs.read(sysfs.SYS / "class/block" / name / "dev")) if path.startswith("/dev/") else None


def _is_node(path: str, number: int) -> bool:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return False
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == number


@contextlib.contextmanager
def open_block(number: int | None, node: str, flags: int = 0) -> Iterator[int]:
    """A block device, opened for reading and without waiting for a medium, whether or not it has a node here.

    Args:
        number: The device number.
        node: Its node. In a container there may be none, or another device's: another one is made for a moment then,
            below /dev, as other file systems do not let devices be opened (mount(8), nodev).
        flags: Further flags of open(2).

    Raises:
        OSError: It cannot be opened, or no node can be made.
    """
    if number is None:
        raise OSError(errno.ENXIO, "it has no device number")
    with contextlib.ExitStack() as stack:
        if not _is_node(node, number):
            import tempfile  # here, as a node is hardly ever missing

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyiommufd-", dir="/dev"))
            node = f"{folder}/{Path(node).name}"
            os.mknod(node, stat.S_IFBLK | 0o600, number)
        fd = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
        try:
            yield fd
        finally:
            os.close(fd)


def unescape(text: str) -> str:
    """Undo the octal escapes in which /proc writes blanks, newlines and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
