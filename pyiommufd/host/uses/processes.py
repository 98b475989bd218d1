"""Which processes hold devices open, and in which mount namespaces processes are."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pyiommufd.host import sysfs
from pyiommufd.host.limits import CAP_SYS_PTRACE, has_capability
from pyiommufd.host.namespaces import has_own_users, namespace, sees_all_processes
from pyiommufd.host.uses.mounts import is_remote

# udev workers: they open every new disk briefly to probe its content, and tolerate a failure.
_UDEV = frozenset({"systemd-udevd", "(udev-worker)", "udevd"})

# Registers that sysfs lets a process map, as drivers in user space do.
_REGISTERS = re.compile(r"/sys/devices/.*/resource[0-9]+(_wc)?")
_MAPPED = re.compile(rb" (/dev/(?!shm/|zero)[^\n]*|/sys/devices/[^\n]*/resource[0-9]+(?:_wc)?)\n")

DELETED = " (deleted)"
"""What the kernel adds to the path of a file that has been removed."""

_VFIO_NODES = "/dev/vfio/devices/"


class Descriptor(NamedTuple):
    """A node of a device that a process has open.

    Attributes:
        pid: The process.
        fd: The number by which it has it.
        path: Of which node, as the process knows it; with `DELETED` where it is no longer there.
        number: The number of the device.
        device: Of a node of vfio, the folder in sysfs of its device, which newer kernels say (Linux 7.3,
            drivers/vfio/vfio_main.c, vfio_device_show_fdinfo); else empty.
    """

    pid: int
    fd: str
    path: str
    number: int
    device: str = ""


@dataclass(slots=True)
class Processes:
    """The machine's processes, each as it was when it was looked at.

    Attributes:
        commands: The commands of those that let themselves be looked at, by their numbers.
        nodes: Who has nodes of devices open, by the type of the node (``stat.S_IFCHR`` or ``S_IFBLK``) and the number
            of the device.
        vfio: Of these, those by a path of vfio's nodes.
        by_path: Who has a node of a device mapped, or the registers of one in sysfs mapped or open, by the path.
        sockets: Who holds a socket, by its inode.
        namespaces: A process in each mount namespace that is neither init's nor this process's: its folder below
            /proc, and in words.
        networks: The same for network namespaces that are not this process's.
        unseen: Whose files and mounts this process may not look at, and from where that could be done, for a sentence
            each. Empty: all was seen.
    """

    commands: dict[int, str] = field(default_factory=dict)
    nodes: dict[tuple[int, int], list[Descriptor]] = field(default_factory=dict)
    vfio: list[Descriptor] = field(default_factory=list)
    by_path: dict[str, set[int]] = field(default_factory=dict)
    sockets: dict[int, int] = field(default_factory=dict)
    namespaces: list[tuple[str, str]] = field(default_factory=list)
    networks: list[tuple[str, str]] = field(default_factory=list)
    unseen: list[tuple[str, str]] = field(default_factory=list)

    def words(self, pid: int) -> str:
        """One of these processes in words; see `process_words`."""
        return process_words(pid, self.commands[pid])


def look_at_processes(*, mappings: bool) -> Processes:
    """Look at all processes, at each once.

    Complete for root only, in the initial user namespace and with the initial one's /proc.

    Args:
        mappings: Find what is mapped into memory as well, and has no open descriptor. That takes longer.
    """
    found = Processes()
    ours = namespace("self", "mnt")
    seen = {ours, namespace("1", "mnt"), None}
    networks = {namespace("self", "net"), None}
    try:
        pids = sorted(int(name) for name in os.listdir(sysfs.PROC) if name.isdigit())  # noqa: PTH208 (hot)
        hidden = False
    except OSError:
        pids, hidden = [], True
    remote = RemoteMounts()
    for pid in pids:
        process, mounts = str(pid), None
        try:
            mounts = os.readlink(f"{sysfs.PROC}/{process}/ns/mnt")  # noqa: PTH115 (hot)
        except PermissionError:
            # So are its open files and its mappings, though those may be listed (proc(5), ptrace(2)).
            hidden = True
            continue
        except OSError:
            process, mounts = _living_thread(process)
        found.commands[pid] = sysfs.read(f"{sysfs.PROC}/{pid}/comm") or "?"
        if mounts not in seen:
            seen.add(mounts)
            found.namespaces.append((process, found.words(pid)))
        network = namespace(process, "net")
        if network not in networks:
            networks.add(network)
            found.networks.append((process, found.words(pid)))
        try:
            opened = descriptors(process, mounts, foreign=mounts != ours, remote=remote)
        except OSError:
            hidden, opened = True, []
        _add_descriptors(found, pid, process, opened)
        if mappings:
            _add_mappings(found, pid, process)
    found.unseen = list(_unseen(some_hidden=hidden))
    return found


def _living_thread(process: str) -> tuple[str, str | None]:
    """A thread of a process, as a folder below /proc, and its mount namespace, where the process itself shows none.

    Its first thread may have ended, and others go on, with its files. Where all have, it is the process, and None.
    """
    try:
        threads = os.listdir(f"{sysfs.PROC}/{process}/task")  # noqa: PTH208 (names alone)
    except OSError:
        threads = []
    for thread in threads:
        if mounts := namespace(f"{process}/task/{thread}", "mnt"):
            return f"{process}/task/{thread}", mounts
    return process, None


def open_files(processes: Processes) -> dict[str, list[str]]:
    """Who has nodes of devices, or their registers in sysfs, open or mapped: processes, and the kernel's consoles.

    Returns:
        Those in words, by the folder in sysfs of what the node is of, without links; it may not be there. Or by the
        path of the registers (`is_registers`).
    """
    users: dict[str, set[int]] = {}
    for (kind, number), holding in processes.nodes.items():
        path = _sys_path("block" if kind == stat.S_IFBLK else "char", number)
        users.setdefault(path, set()).update(one.pid for one in holding)
    for name, pids in processes.by_path.items():
        for path in {name} if is_registers(name) else _named(name):
            users.setdefault(path, set()).update(pids)
    found = _consoles()
    for path, pids in users.items():
        if words := [processes.words(pid) for pid in sorted(pids) if processes.commands[pid] not in _UDEV]:
            found.setdefault(path, []).extend(words)
    return found


def is_registers(path: str) -> bool:
    """Whether a path is that of a device's registers in sysfs."""
    return _REGISTERS.fullmatch(path) is not None


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


class RemoteMounts:
    """The mounts whose server may not answer, by their types; each mount table is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    def seen_by(self, process: str, mounts: str | None) -> frozenset[str]:
        """The numbers of those that a process sees. Others in its namespace with the same root see the same.

        Args:
            process: Its folder below /proc.
            mounts: Its mount namespace.
        """
        try:
            place = (mounts or "", os.readlink(f"{sysfs.PROC}/{process}/root"))  # noqa: PTH115 (hot)
        except OSError:
            return self._read(process)
        if place not in self._known:
            self._known[place] = self._read(process)
        return self._known[place]

    @staticmethod
    def _read(process: str) -> frozenset[str]:
        found = set()
        for line in sysfs.lines(f"{sysfs.PROC}/{process}/mountinfo"):
            if is_remote(line.partition(" - ")[2].partition(" ")[0]):
                found.add(line.partition(" ")[0])
        return frozenset(found)


def _is_on(process: str, fd: str, mounts: frozenset[str]) -> bool:
    """Whether a file that a process has open is on one of these mounts, without asking the file itself."""
    text = sysfs.read(f"{sysfs.PROC}/{process}/fdinfo/{fd}") if mounts else None
    number = re.search(r"^mnt_id:\s*(\d+)", text or "", re.MULTILINE)
    return number is not None and number[1] in mounts


def descriptors(
    process: str, mounts: str | None, *, foreign: bool, remote: RemoteMounts
) -> list[tuple[str, str, os.stat_result | None]]:
    """What a process has open: the number, what it is of, and its status where it may be a device's node.

    A stat of any other file may wait for a server that does not answer.

    Args:
        process: Its folder below /proc.
        mounts: Its mount namespace.
        foreign: Whether that is another one than this process's. Of a container's node the path is that within the
            filesystem which the container has on /dev.
        remote: What is known already of servers that may not answer.

    Raises:
        OSError: They cannot be listed, and not since the process has ended: as this one has too many files open, say.
    """
    found: list[tuple[str, str, os.stat_result | None]] = []
    servers: frozenset[str] | None = None
    try:
        top = os.open(f"{sysfs.PROC}/{process}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return found  # ended since
    try:
        for fd in os.listdir(top):  # noqa: PTH208 (of a descriptor)
            try:
                target = os.readlink(fd, dir_fd=top)
                is_asked = target.startswith("/dev/")
                if not is_asked and target.startswith("/") and (foreign or "/dev/" in target) and target[:5] != "/sys/":
                    servers = remote.seen_by(process, mounts) if servers is None else servers
                    is_asked = not _is_on(process, fd, servers)
                found.append((fd, target, os.stat(fd, dir_fd=top) if is_asked else None))
            except OSError:
                continue  # closed since
    except (FileNotFoundError, ProcessLookupError):
        pass  # ended since
    finally:
        os.close(top)
    return found


def _add_descriptors(
    found: Processes, pid: int, process: str, opened: Iterable[tuple[str, str, os.stat_result | None]]
) -> None:
    for fd, target, status in opened:
        if status is not None:
            kind = stat.S_IFMT(status.st_mode)
            if kind not in (stat.S_IFCHR, stat.S_IFBLK):
                continue
            descriptor = Descriptor(pid, fd, target, status.st_rdev)
            if target.startswith(_VFIO_NODES):
                descriptor = descriptor._replace(device=_vfio_device(f"{sysfs.PROC}/{process}/fdinfo/{fd}"))
                found.vfio.append(descriptor)
            found.nodes.setdefault((kind, status.st_rdev), []).append(descriptor)
        elif target.startswith("socket:["):
            found.sockets[int(target[8:-1])] = pid
        elif target.startswith("/sys/") and is_registers(target):
            found.by_path.setdefault(target, set()).add(pid)


def _vfio_device(fdinfo: str) -> str:
    for line in sysfs.lines(fdinfo):
        key, _, value = line.partition(":")
        if key == "vfio-device-syspath":
            return value.strip()
    return ""


def _add_mappings(found: Processes, pid: int, process: str) -> None:
    text = sysfs.content(f"{sysfs.PROC}/{process}/maps") or b""  # none: ended since
    for name in _MAPPED.findall(text):
        found.by_path.setdefault(os.fsdecode(name), set()).add(pid)


def _named(name: str) -> set[str]:
    """The path in sysfs of a device, by the name of its node; none where it has none."""
    try:
        status = os.stat(name)  # noqa: PTH116
    except OSError:
        return set()  # unplugged, or another namespace's
    if stat.S_ISBLK(status.st_mode):
        return {_sys_path("block", status.st_rdev)}
    return {_sys_path("char", status.st_rdev)} if stat.S_ISCHR(status.st_mode) else set()


def _sys_path(kind: str, number: int) -> str:
    return os.path.realpath(f"{sysfs.SYS}/dev/{kind}/{os.major(number)}:{os.minor(number)}")


def char_path(major: int, minor: int) -> str:
    """Where `open_files` has a character device of that number."""
    return _sys_path("char", os.makedev(major, minor))


def _consoles() -> dict[str, list[str]]:
    """What the kernel's own messages go to: no process holds it, and it is in use."""
    found: dict[str, list[str]] = {}
    for line in sysfs.lines(sysfs.PROC / "consoles"):
        # Name, flags, number (Linux 7.3, fs/proc/consoles.c); some have no number.
        match = re.search(r"\s(\d+):(\d+)$", line)
        if match:
            path = _sys_path("char", os.makedev(int(match[1]), int(match[2])))
            found.setdefault(path, []).append(f"the kernel's console {line.split()[0]}")
    return found


def console_names() -> list[str]:
    """The consoles that the kernel's messages go to, such as ``ttyS0``."""
    return [line.split()[0] for line in sysfs.lines(sysfs.PROC / "consoles") if line.strip()]
