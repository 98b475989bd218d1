"""Sockets that take whole frames from a network interface, which needs no address for that: AF_PACKET and AF_XDP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .. import sysfs
from . import netlink


@dataclass(frozen=True, slots=True)
class RawSockets:
    """The sockets of this network namespace.

    Attributes:
        users: For the number of an interface what uses it, for a sentence each.
        are_complete: Whether these are all: without the diagnosis of AF_XDP sockets the kernel does not list those.
    """

    users: Mapping[int, list[str]]
    are_complete: bool


def raw_sockets(holders: Mapping[int, str]) -> RawSockets:
    """Look at the sockets.

    Args:
        holders: See `Processes.sockets`.

    Raises:
        OSError: The kernel does not say.
    """
    users: dict[int, list[str]] = {}

    def add(index: int, kind: str, inode: int) -> None:
        users.setdefault(index, []).append(f"{kind} socket of {holders.get(inode, 'a process that is not seen')}")

    for line in sysfs.lines(sysfs.PROC / "net/packet")[1:]:
        # Address, references, type, protocol, interface, running, memory, user, inode (Linux 7.3,
        # net/packet/af_packet.c, packet_seq_show). One that listens on all interfaces (0) is there for none of them.
        words = line.split()
        if words[4] != "0":
            add(int(words[4]), "a packet", int(words[8]))
    express = netlink.xdp_sockets()
    for inode, index in (express or {}).items():
        add(index, "an AF_XDP", inode)
    return RawSockets(users, express is not None)
