"""The guest's initial file system: a cpio archive with busybox, the agent and the script that sets all up.

The guest stays in it: the archive's tmpfs is the root, on which the script mounts what `GuestFiles` planned.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import shlex
import shutil
import stat
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.guest.filesystem import MODULES, SPARE_FOLDER, GuestFiles
from pyiommufd.testing.guest.foreign import ForeignSystem
from pyiommufd.testing.guest.iort import IN_INITRAMFS
from pyiommufd.testing.inside import agent
from pyiommufd.testing.provision.distribution_kernel import module_content, module_name

_TRAILER = "TRAILER!!!"
_COMPILED = "/.guest/agent.pyc"

# What the host may not have, being a container, and a guest has use for.
_SPARE_PROGRAMS = ("insmod", "rmmod", "lsmod", "dmesg", "ip", "ifconfig", "mount", "umount", "poweroff")

# As large as the kernel's virtio transport takes.
_9P_SIZE = 512000


@dataclass(slots=True)
class Archive:
    """A cpio archive in the "newc" format, which the kernel unpacks into its root."""

    _parts: list[bytes] = field(default_factory=list)
    _folders: set[Path] = field(default_factory=set)
    _number: int = 0

    def folder(self, path: str | Path, mode: int = 0o755) -> None:
        """Add a folder and those above it, unless they are there."""
        path = Path(path)
        if path not in self._folders and path != path.parent:
            self.folder(path.parent)
            self._folders.add(path)
            self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str | Path, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self.folder(Path(path).parent)
        self._entry(path, stat.S_IFREG | mode, content)

    def link(self, path: str | Path, target: str) -> None:
        """Add a symbolic link."""
        self.folder(Path(path).parent)
        self._entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def character_device(self, path: str | Path, major: int, minor: int) -> None:
        """Add a character device node."""
        self.folder(Path(path).parent)
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def _entry(self, path: str | Path, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._number += 1
        name = os.fsencode(path).strip(b"/") + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # Inode, mode, uid, gid, links, time, size, the archive's device, the node's device, name length, checksum.
        numbers = (self._number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % number for number in numbers)
        self._parts += [_pad(header + name), _pad(content)]

    def build(self) -> bytes:
        """The whole archive."""
        complete = Archive(list(self._parts))
        complete._entry(_TRAILER, 0)
        return b"".join(complete._parts)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def find_busybox(root: Path | None = None) -> Path:
    """The static busybox of this machine, or of the root of another architecture.

    Raises:
        GuestMissingError: There is none.
    """
    if root is not None:
        program = root / "usr/bin/busybox"
        if program.is_file() and is_static(program):
            return program
        raise GuestMissingError(f"there is no static busybox in {root}")
    for name in ("busybox", "busybox-static"):
        found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/bin:/usr/bin:/sbin:/usr/sbin")
        if found and is_static(Path(found)):
            return Path(found)
    raise GuestMissingError("the guest needs a static busybox: apt-get install busybox-static")


def is_static(program: Path) -> bool:
    """Whether this is a 64-bit ELF program that needs no dynamic loader."""
    with program.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:5] != b"\x7fELF\x02":
            return False
        offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    interpreter = 3  # PT_INTERP
    return all(struct.unpack_from("<I", table, size * number)[0] != interpreter for number in range(count))


def build_initramfs(
    files: GuestFiles, modules: list[Path], extra_modules: list[Path], iort: bytes | None = None
) -> bytes:
    """The initial file system of a guest.

    Args:
        files: What the guest sees.
        modules: Kernel modules that the guest needs to get going, in loading order.
        extra_modules: Kernel modules that lie ready in `MODULES`.
        iort: The ACPI table that the kernel is to use in place of the firmware's.

    Raises:
        GuestMissingError: This machine has no static busybox.
    """
    archive = Archive()
    archive.character_device("/dev/console", 5, 1)
    archive.character_device("/dev/null", 1, 3)
    system = files.system
    archive.file("/.guest/busybox", find_busybox(system.folder if system else None).read_bytes(), 0o755)
    compiled = _agent(system) == _COMPILED
    archive.file(_agent(system), _compiled_agent() if compiled else Path(agent.__file__).read_bytes())
    for name in _SPARE_PROGRAMS:
        archive.link(f"{SPARE_FOLDER}/{name}", "../busybox")
    for folder in ("/proc", "/sys", "/run", "/var/log", "/var/cache", "/mnt", "/home", MODULES):
        archive.folder(folder)
    archive.folder("/root", 0o700)
    for folder in ("/tmp", "/var/tmp"):  # noqa: S108 - the guest's
        archive.folder(folder, 0o1777)
    archive.link("/var/run", "/run")
    archive.link("/var/lock", "/run/lock")
    for path, content in files.etc.items():
        if isinstance(content, str):
            archive.link(path, content)
        else:
            archive.file(path, content)
    if Path("/etc/mtab") not in files.etc:
        archive.link("/etc/mtab", "/proc/self/mounts")
    for path, target in files.links.items():
        archive.link(path, target)
    for path, file in files.files.items():
        archive.file(path, file)
    for number, export in enumerate(files.exports):
        for path, item in export.layer.items():
            place = Path(_layer(number), path)
            if item is None:
                archive.folder(place)
            elif isinstance(item, str):
                archive.link(place, item)
            else:
                archive.file(place, item)
    names = []
    for number, module in enumerate(modules):
        names.append(f"/.guest/modules/{number:03}-{module_name(module.name)}.ko")
        archive.file(names[-1], module_content(module))
    for module in extra_modules:
        archive.file(f"{MODULES}/{module.name}", module.read_bytes())
    archive.file("/init", init_script(files, names).encode(errors="surrogateescape"), 0o755)
    return (b"" if iort is None else _table_archive(iort)) + archive.build()


def _table_archive(iort: bytes) -> bytes:
    archive = Archive()
    archive.file(f"/{IN_INITRAMFS}", iort)
    return archive.build()


def _layer(number: int) -> str:
    """Where the files are that lie on top of an export, by its number."""
    return f"/.guest/layers/{number}"


def _agent(system: ForeignSystem | None) -> str:
    """The agent's file: compiled where the guest's Python is of this one's version, as its source where it is not."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return _COMPILED if system is None or system.python_version == own else "/.guest/agent.py"


def _compiled_agent() -> bytes:
    # Compiled here, by the Python that will run it: compiling takes the emulated CPU longer than running.
    code = compile(Path(agent.__file__).read_bytes(), "/.guest/agent.py", "exec", dont_inherit=True)
    # Flags and what tells whether the source has changed: of no matter to Python where it is given the file to run.
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def init_script(files: GuestFiles, modules: list[str]) -> str:
    """The shell script that is the guest's first process and becomes the agent.

    What it says goes to the console; when a step fails it turns the machine off, so the host sees the reason last.
    """
    quote = shlex.quote
    lines = [
        "#!/.guest/busybox sh",
        "b=/.guest/busybox",
        "$b chmod 755 /",
        'die() { echo "guest: $1"; $b sleep 0.2; $b poweroff -f; }',
        "$b mount -t proc proc /proc || die 'cannot mount /proc'",
        "$b mount -t sysfs sysfs /sys || die 'cannot mount /sys'",
        "$b mount -t devtmpfs devtmpfs /dev || die 'cannot mount /dev'",
        # The kernel has started the first CPU only; see the guest's command line. That one may have no such file.
        "for c in /sys/devices/system/cpu/cpu[1-9]*/online; do",
        "  [ ! -e $c ] || echo 1 > $c || die 'cannot start a CPU'",
        "done",
    ]
    lines += [f"$b insmod {quote(module)} || echo {quote('guest: cannot load ' + module)}" for module in modules]
    lines += [
        "$b mkdir -p /dev/shm /dev/pts /dev/hugepages /run/lock /.guest/overlay",
        "$b mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        "$b mount -t devpts -o ptmxmode=666 devpts /dev/pts",
        "$b ln -sf /proc/self/fd /dev/fd",
        "$b ln -sf /proc/self/fd/0 /dev/stdin",
        "$b ln -sf /proc/self/fd/1 /dev/stdout",
        "$b ln -sf /proc/self/fd/2 /dev/stderr",
        # Each of these only where the kernel has it.
        "for m in debugfs:/sys/kernel/debug configfs:/sys/kernel/config hugetlbfs:/dev/hugepages "
        "tracefs:/sys/kernel/tracing cgroup2:/sys/fs/cgroup; do",
        "  [ -d ${m#*:} ] && $b mount -t ${m%%:*} ${m%%:*} ${m#*:} 2>/dev/null",
        "done",
        "$b hostname pyiommufd-guest",
        "$b ifconfig lo 127.0.0.1 up",
    ]
    made = files.system is None or Path("/etc/ld.so.cache") in files.etc
    for number, export in enumerate(files.exports):
        # Nobody else changes the read-only ones while the guest runs, so it may cache all it likes. Of the results
        # the host is to see every byte even when the guest dies, so they are written through.
        options = "rw,cache=mmap" if export.writable else "ro,cache=loose"
        lines += [
            f"$b mkdir -p {quote(str(export.target))}",
            f"$b mount -t 9p -o trans=virtio,version=9p2000.L,access=any,msize={_9P_SIZE},{options} "
            f"fs{number} {quote(str(export.target))} || die {quote(f'cannot mount {export.target}')}",
        ]
        # "." as the lower folder, here and below: the path itself would need overlayfs's own escapes.
        if export.layer:
            lines += [
                f"cd {quote(str(export.target))} && $b mount -t overlay -o lowerdir={_layer(number)}:. overlay "
                f"{quote(str(export.target))} || die {quote(f'cannot complete {export.target}')}",
                "cd /",
            ]
        if export.target == Path("/usr") and not made:
            # A root that nobody installed has no list of libraries, by which Python finds those that it is to load.
            lines += ["/usr/sbin/ldconfig -iX &"]
    if files.overlay is not None:
        lines += [
            "$b mount -t tmpfs tmpfs /.guest/overlay && $b mkdir /.guest/overlay/upper /.guest/overlay/work",
            f"cd {quote(str(files.overlay))} && $b mount -t overlay "
            "-o lowerdir=.,upperdir=/.guest/overlay/upper,workdir=/.guest/overlay/work overlay "
            f"{quote(str(files.overlay))} || die 'cannot make the working folder writable'",
            "cd /",
        ]
    python = Path(sys.executable).resolve() if files.system is None else files.system.python
    lines += [
        *([] if made else ["wait"]),
        f"exec {quote(str(python))} -I -S {_agent(files.system)}",
        "die 'cannot run Python'",
    ]
    return "\n".join(lines) + "\n"
