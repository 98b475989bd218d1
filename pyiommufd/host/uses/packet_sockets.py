"""Sockets that have a network interface without an address: those of AF_PACKET, and of AF_XDP.

Of a card that is captured from, that DHCP or LLDP runs on, or that a program drives by itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pyiommufd.host import sysfs
from pyiommufd.host.uses import netlink

# Numbers: Linux 7.3, include/uapi/linux/{netlink,sock_diag,xdp_diag}.h, include/linux/socket.h.
_SOCK_DIAG = 4
_BY_FAMILY = 20
_XDP = 44
_SHOW_INFO = 1
_INFO = 1


@dataclass(slots=True)
class PacketSockets:
    """The sockets of this network namespace that are bound to one interface.

    Attributes:
        packet: The inodes of those of AF_PACKET, by the number of the interface.
        xdp: The same of AF_XDP.
        unlisted: How many sockets of AF_XDP there are besides, of which the kernel does not say what they are bound to.
    """

    packet: dict[int, list[int]] = field(default_factory=dict)
    xdp: dict[int, list[int]] = field(default_factory=dict)
    unlisted: int = 0


def packet_sockets() -> PacketSockets:
    """List these sockets (/proc/net, sock_diag); needs no privilege."""
    found = PacketSockets()
    for line in sysfs.lines(sysfs.PROC / "net/packet")[1:]:
        # Address, references, type, protocol, interface (0: all of them) … inode (Linux 7.3, net/packet/af_packet.c).
        columns = line.split()
        if columns[4] != "0":
            found.packet.setdefault(int(columns[4]), []).append(int(columns[8]))
    before = _xdp_sockets()
    if before:
        listed = _listed_xdp_sockets()
        for index, inode in listed:
            found.xdp.setdefault(index, []).append(inode)
        # The list is empty without CONFIG_XDP_SOCKETS_DIAG, and ends at the first whose interface is gone (Linux 7.3,
        # xsk_diag_dump in net/xdp/xsk_diag.c). A socket may have been closed, or made, meanwhile.
        found.unlisted = max(0, min(before, _xdp_sockets()) - len(listed))
    return found


def _xdp_sockets() -> int:
    """How many sockets of AF_XDP there are."""
    for line in sysfs.lines(sysfs.PROC / "net/protocols"):
        # Name, size, sockets (Linux 7.3, proto_seq_printf in net/core/sock.c).
        columns = line.split()
        if columns[0] == "XDP":
            return int(columns[2])
    return 0


def _listed_xdp_sockets() -> list[tuple[int, int]]:
    """The numbers of their interfaces, and their inodes."""
    try:
        answer = netlink.messages(_BY_FAMILY, struct.pack("=BBHIIII", _XDP, 0, 0, 0, _SHOW_INFO, 0, 0), _SOCK_DIAG)
    except OSError:
        return []
    found = []
    for message in answer:
        (inode,) = struct.unpack_from("=I", message, 4)
        info = dict(netlink.attributes(message[16:])).get(_INFO)
        if info is not None:
            found.append((struct.unpack_from("=I", info)[0], inode))
    return found
