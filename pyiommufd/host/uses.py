"""What the host is doing with a device: the reasons not to take it away."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import Refusal
from . import sysfs
from .devices import HostDevice


def refusals(device: HostDevice) -> tuple[Refusal, ...]:
    """Every use of the device that a claim would break: mounted filesystems, swap, the default route.

    Looked up through every layer above the device: partitions, device mapper, md, and bonds or bridges above a
    network interface. What other mount namespaces have mounted is seen as far as init's shows it.
    """
    found = []
    disks = set(_block_devices(device))
    if disks:
        for point in _mount_points(disks):
            found.append(Refusal(device.name, "mounted", f"it holds the filesystem mounted on {point}"))
        for area in _swap_areas(disks):
            found.append(Refusal(device.name, "swap", f"it holds the swap area {area}"))
    interfaces = set(_interfaces(device))
    for interface in sorted(interfaces & _default_routes()):
        found.append(Refusal(device.name, "default-route", f"the default route leaves by {interface}"))
    return tuple(found)


def _class() -> Path:
    return sysfs.SYS / "class"


def _below(path: Path) -> Iterator[Path]:
    """The folders of a device, without those of the PCI devices behind a bridge."""
    for folder, names, _ in os.walk(path):
        here = Path(folder)
        names[:] = [name for name in names if not _is_other_device(here / name)]
        yield here


def _is_other_device(path: Path) -> bool:
    return not path.is_symlink() and sysfs.link_name(path / "subsystem") == "pci"


def _block_devices(device: HostDevice) -> Iterator[str]:
    """Kernel names of the device's disks and partitions, and of all that is built on them."""
    pending = []
    for folder in _below(device.sys_path):
        if folder.name == "block":
            pending += [path.resolve() for path in folder.iterdir()]
        # With native multipath a namespace hangs below the NVMe subsystem, not below a controller.
        if folder.parent.name == "nvme" and (folder / "subsysnqn").exists():
            for subsystem in (_class() / "nvme-subsystem").glob(f"*/{folder.name}"):
                pending += [path.resolve() for path in subsystem.parent.glob("nvme*n*") if (path / "dev").exists()]
        elif sysfs.link_name(folder / "subsystem") == "block":
            pending.append(folder)
    seen: set[str] = set()
    while pending:
        disk = pending.pop()
        if disk.name in seen or not disk.is_dir():
            continue
        seen.add(disk.name)
        yield disk.name
        pending += [path for path in disk.iterdir() if (path / "partition").exists()]
        if (disk / "holders").is_dir():
            pending += [path.resolve() for path in (disk / "holders").iterdir()]
        pending += _loops_on(disk.name)


def _loops_on(disk: str) -> Iterator[Path]:
    """Loop devices whose file lies on a filesystem of this disk."""
    numbers = set(_numbers([disk]))
    for path in (_class() / "block").glob("loop*/loop/backing_file"):
        backing = sysfs.read(path)
        if not backing:
            continue
        try:
            status = os.stat(backing)  # noqa: PTH116
        except OSError:
            continue
        number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
        if number in numbers:
            yield path.parent.parent.resolve()


def _numbers(disks: Iterable[str]) -> Iterator[int]:
    for disk in disks:
        text = sysfs.read(_class() / "block" / disk / "dev")
        if text:
            major, minor = text.split(":")
            yield os.makedev(int(major), int(minor))


def _mount_points(disks: set[str]) -> list[str]:
    numbers = set(_numbers(disks))
    points = set()
    for process in ("self", "1"):
        for line in (sysfs.read(Path("/proc") / process / "mountinfo") or "").splitlines():
            # proc_pid_mountinfo(5): … major:minor root mount-point options … - type source options
            left, _, right = line.partition(" - ")
            words = left.split()
            major, minor = words[2].split(":")
            # btrfs and others have a number of their own: there the source tells.
            if os.makedev(int(major), int(minor)) in numbers or _number_of(right.split()[1]) in numbers:
                points.add(_unescape(words[4]))
    return sorted(points)


def _swap_areas(disks: set[str]) -> list[str]:
    numbers = set(_numbers(disks))
    areas = []
    for line in (sysfs.read(Path("/proc/swaps")) or "").splitlines()[1:]:
        path = _unescape(line.split()[0])
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:
            continue
        if (status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev) in numbers:
            areas.append(path)
    return areas


def _number_of(path: str) -> int | None:
    try:
        status = os.stat(_unescape(path))  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _unescape(text: str) -> str:
    """Undo the octal escapes in which /proc writes blanks."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _interfaces(device: HostDevice) -> Iterator[str]:
    """Names of the device's network interfaces, and of the bonds, bridges and VLANs above them."""
    pending = [path for folder in _below(device.sys_path) if folder.name == "net" for path in folder.iterdir()]
    seen: set[str] = set()
    while pending:
        interface = pending.pop().resolve()
        if interface.name in seen:
            continue
        seen.add(interface.name)
        yield interface.name
        pending += list(interface.glob("upper_*"))


def _default_routes() -> set[str]:
    found = set()
    for line in (sysfs.read(Path("/proc/net/route")) or "").splitlines()[1:]:
        words = line.split()
        if words[1] == "00000000" and words[7] == "00000000":
            found.add(words[0])
    for line in (sysfs.read(Path("/proc/net/ipv6_route")) or "").splitlines():
        words = line.split()
        # The kernel's own "unreachable" entry is a default route on lo.
        if words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            found.add(words[9])
    return found
