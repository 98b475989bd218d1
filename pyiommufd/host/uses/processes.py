"""Which processes hold devices open, and in which mount namespaces processes are."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from pyiommufd.host import sysfs
from pyiommufd.host.limits import CAP_SYS_PTRACE, has_capability
from pyiommufd.host.namespaces import has_own_users, namespace, sees_all_processes
from pyiommufd.host.uses.mounts import is_remote

# udev workers: they open every new disk briefly to probe its content, and tolerate a failure.
_UDEV = frozenset({"systemd-udevd", "(udev-worker)", "udevd"})

# Registers that sysfs lets a process map, as drivers in user space do.
_REGISTERS = re.compile(r"/sys/devices/.*/resource[0-9]+(_wc)?")
_MAPPED = re.compile(rb" (/dev/(?!shm/|zero)[^\n]*|/sys/devices/[^\n]*/resource[0-9]+(?:_wc)?)\n")


@dataclass(frozen=True, slots=True, order=True)
class OpenFile:
    """A device node that is held open, or a device's registers in sysfs.

    Attributes:
        sys_path: The folder in sysfs of what the node is of, without links; it may not be there. Or the file.
        holder: By whom: a process, or the kernel's console.
    """

    sys_path: str
    holder: str

    @property
    def is_node(self) -> bool:
        """Whether it is a node."""
        return _REGISTERS.fullmatch(self.sys_path) is None


@dataclass(slots=True)
class Processes:
    """The machine's processes.

    Attributes:
        files: The nodes and registers of devices that they hold open.
        namespaces: The number and the command of a process in each mount namespace that is neither init's nor this
            process's.
        networks: The same for network namespaces that are not this process's.
        sockets: Who holds a socket, by its inode.
        unseen: Whose files and mounts this process may not look at, and from where that could be done, for a sentence
            each. Empty: all was seen.
    """

    files: list[OpenFile] = field(default_factory=list)
    namespaces: list[tuple[int, str]] = field(default_factory=list)
    networks: list[tuple[int, str]] = field(default_factory=list)
    sockets: dict[int, str] = field(default_factory=dict)
    unseen: list[tuple[str, str]] = field(default_factory=list)


def look_at_processes(*, mappings: bool) -> Processes:
    """Look at all processes. Complete for root only, in the initial user namespace and with the initial one's /proc.

    Args:
        mappings: Find what is mapped into memory as well, and has no open descriptor. That takes longer.
    """
    found = Processes(files=_consoles())
    ours = namespace("self", "mnt")
    seen = {ours, namespace("1", "mnt"), None}
    networks = {namespace("self", "net"), None}
    try:
        pids = [name for name in os.listdir(sysfs.PROC) if name.isdigit()]  # noqa: PTH208 (hot)
    except OSError:
        pids = []
    hidden = False
    for pid in sorted(pids, key=int):
        command = sysfs.read(sysfs.PROC / pid / "comm") or "?"
        try:
            mounts = os.readlink(f"{sysfs.PROC}/{pid}/ns/mnt")  # noqa: PTH115
        except PermissionError:
            # So are its open files and its mappings, though those may be listed (proc(5), ptrace(2)).
            hidden = True
            continue
        except OSError:
            mounts = None  # ended since
        if mounts not in seen:
            seen.add(mounts)
            found.namespaces.append((int(pid), command))
        network = namespace(pid, "net")
        if network not in networks:
            networks.add(network)
            found.networks.append((int(pid), command))
        if command in _UDEV:
            continue
        held, sockets = _held(pid, foreign=mounts != ours)
        who = process_words(int(pid), command)
        found.sockets.update(dict.fromkeys(sockets, who))
        if mappings:
            held |= _mappings(pid)
        found.files += [OpenFile(path, who) for path in sorted(held)]
    found.unseen = list(_unseen(some_hidden=hidden))
    return found


def process_words(pid: int, command: str) -> str:
    """A process in words, for messages; the calling process is called "this process"."""
    return f"this process (pid {pid})" if pid == os.getpid() else f"pid {pid} ({command})"


def _unseen(*, some_hidden: bool) -> Iterator[tuple[str, str]]:
    """What `Processes.unseen` holds.

    Args:
        some_hidden: Whether a process did not let itself be looked at.
    """
    if not sees_all_processes():
        yield "processes outside this PID namespace", "from the host"
    # With hidepid (proc(5)) a user may not even see that other users' processes exist. Root's rights in a user
    # namespace do not hold outside it.
    if has_own_users():
        yield "processes outside this user namespace", "from the host, as root"
    elif not has_capability(CAP_SYS_PTRACE):
        yield "other users' processes", "as root (CAP_SYS_PTRACE)"
    elif some_hidden:
        yield "processes that this one may not look at", "from the host"


def _remote_mounts(pid: str) -> frozenset[str]:
    """The numbers of the mounts that a process sees whose server may not answer, by their types."""
    found = set()
    for line in sysfs.lines(sysfs.PROC / pid / "mountinfo"):
        if is_remote(line.partition(" - ")[2].partition(" ")[0]):
            found.add(line.partition(" ")[0])
    return frozenset(found)


def _is_on(process: str, fd: str, mounts: frozenset[str]) -> bool:
    """Whether a file that a process has open is on one of these mounts, without asking the file itself."""
    text = sysfs.read(f"{sysfs.PROC}/{process}/fdinfo/{fd}") if mounts else None
    number = re.search(r"^mnt_id:\s*(\d+)", text or "", re.MULTILINE)
    return number is not None and number[1] in mounts


def descriptors(pid: str, *, foreign: bool) -> Iterator[tuple[str, str, os.stat_result | None]]:
    """What a process has open: the number, what it is of, and its status where it may be a device's node.

    A stat of any other file may wait for a server that does not answer.

    Args:
        pid: The process.
        foreign: Whether it is in another mount namespace than this one. Of a container's node the path is that within
            the filesystem which the container has on /dev.
    """
    folder = f"{sysfs.PROC}/{pid}/fd"
    remote: frozenset[str] | None = None
    try:
        names = os.listdir(folder)  # noqa: PTH208 (hot)
    except OSError:
        return  # ended since
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")  # noqa: PTH115
            is_asked = target.startswith("/dev/")
            if not is_asked and target.startswith("/") and (foreign or "/dev/" in target) and target[:5] != "/sys/":
                remote = _remote_mounts(pid) if remote is None else remote
                is_asked = not _is_on(pid, name, remote)
            yield name, target, os.stat(f"{folder}/{name}") if is_asked else None  # noqa: PTH116
        except OSError:
            continue  # closed since


def _held(pid: str, *, foreign: bool) -> tuple[set[str], list[int]]:
    """The paths in sysfs of what a process has open, and the inodes of its sockets."""
    found: set[str] = set()
    sockets: list[int] = []
    for _, target, status in descriptors(pid, foreign=foreign):
        if target.startswith("socket:["):
            sockets.append(int(target[8:-1]))
        elif _REGISTERS.fullmatch(target):
            found.add(target)
        elif status is not None:
            found |= _node(status)
    return found, sockets


def _mappings(pid: str) -> set[str]:
    """The paths in sysfs of what a process has mapped."""
    try:
        text = (sysfs.PROC / pid / "maps").read_bytes()
    except OSError:
        return set()
    found = set()
    for name in map(os.fsdecode, set(_MAPPED.findall(text))):
        try:
            found |= {name} if name.startswith("/sys/") else _node(os.stat(name))  # noqa: PTH116
        except OSError:
            continue  # unplugged, or another namespace's
    return found


def _node(status: os.stat_result) -> set[str]:
    """The path in sysfs of a device, by its node; none where it is no node."""
    if stat.S_ISBLK(status.st_mode):
        return {_sys_path("block", status.st_rdev)}
    return {_sys_path("char", status.st_rdev)} if stat.S_ISCHR(status.st_mode) else set()


def _sys_path(kind: str, number: int) -> str:
    return os.path.realpath(f"{sysfs.SYS}/dev/{kind}/{os.major(number)}:{os.minor(number)}")


def char_path(major: int, minor: int) -> str:
    """The `OpenFile.sys_path` of a character device of that number."""
    return _sys_path("char", os.makedev(major, minor))


def _consoles() -> list[OpenFile]:
    """What the kernel's own messages go to: no process holds it, and it is in use."""
    found = []
    for line in sysfs.lines(sysfs.PROC / "consoles"):
        # Name, flags, number (Linux 7.3, fs/proc/consoles.c); some have no number.
        match = re.search(r"\s(\d+):(\d+)$", line)
        if match:
            path = _sys_path("char", os.makedev(int(match[1]), int(match[2])))
            found.append(OpenFile(path, f"the kernel's console {line.split()[0]}"))
    return found


def console_names() -> list[str]:
    """The consoles that the kernel's messages go to, such as ``ttyS0``."""
    return [line.split()[0] for line in sysfs.lines(sysfs.PROC / "consoles") if line.strip()]
