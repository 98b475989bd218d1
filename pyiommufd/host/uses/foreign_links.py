"""Network interfaces of other network namespaces that stand above one of this machine's cards.

Such as the macvlan of a container: the kernel links an interface to what is above it within one namespace only. A
process that has a sysfs of its own namespace shows the rest (Linux 7.3, Documentation/ABI/testing/sysfs-class-net).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from .. import sysfs
from .mounts import is_remote, mounts_of


@dataclass(frozen=True, slots=True)
class ForeignLink:
    """An interface above another one.

    Attributes:
        name: Its name, and in whose eyes.
        below: The number of the interface that it stands on, which is in another namespace than it.
    """

    name: str
    below: int


def foreign_links(networks: Iterable[tuple[int, str]]) -> list[ForeignLink]:
    """Those that processes see.

    Args:
        networks: The number and the command of processes in other network namespaces; see `Processes.networks`.
    """
    ours = _device(f"{sysfs.SYS}/class/net")
    found: dict[tuple[int, str, int], ForeignLink] = {}
    for pid, command in networks:
        # A look below such a root may wait for its server.
        if any(mount.point == "/" and is_remote(mount.kind) for mount in mounts_of(str(pid))):
            continue
        folder = f"{sysfs.PROC}/{pid}/root/sys/class/net"
        theirs = _device(folder)
        # A service without a network may see the sysfs of the host, where its links are those of the host.
        if theirs is None or theirs == ours:
            continue
        for name in _names(folder):
            number, below = (sysfs.read(f"{folder}/{name}/{attribute}") for attribute in ("ifindex", "iflink"))
            # What stands on an interface of its own namespace has a link to that one.
            if below and below.isdigit() and below not in (number, "0") and not _has_lower(f"{folder}/{name}"):
                link = ForeignLink(f"{name} of pid {pid} ({command})", int(below))
                found.setdefault((theirs, name, int(below)), link)
    return list(found.values())


def _device(folder: str) -> int | None:
    try:
        return os.stat(folder).st_dev  # noqa: PTH116
    except OSError:
        return None


def _has_lower(folder: str) -> bool:
    return any(name.startswith("lower_") for name in _names(folder))


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []
