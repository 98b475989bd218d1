"""What the kernel says of its network by netlink: interfaces with their addresses and routes, and XDP sockets.

`/proc/net` shows one table of routes only, of several ways out just the first, and no addresses by interface.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from .. import sysfs

# Numbers: Linux 7.3, include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,nexthop,sock_diag,xdp_diag}.h.
GET_LINK, GET_ADDRESS, GET_ROUTE, GET_NEXTHOP = 18, 22, 26, 106
_SOCK_DIAG, _BY_FAMILY = 4, 20
_REQUEST_DUMP = 0x301
_DONE, _ERROR, _INTERRUPTED = 3, 2, 0x10
_NAME, _LINK_INFO, _INFO_KIND, _XDP, _XDP_ATTACHED, _PARENT = 3, 18, 1, 43, 2, 56
_ADDRESS, _LOCAL = 1, 2
_DESTINATION, _WAY_OUT, _WAYS_OUT, _TABLE, _NEXTHOP = 1, 4, 9, 15, 30
_NEXTHOP_ID, _NEXTHOP_GROUP, _NEXTHOP_WAY_OUT = 1, 2, 5
_UNICAST, _BY_KERNEL, _MAIN = 1, 2, 254
_VERSIONS = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}
_AF_XDP, _SHOW_INFO, _INFO = 44, 1, 1
_UP = 1
_HEADER = struct.Struct("=IHHII")
_ANSWER = 1 << 20
_PATIENCE = 10.0
_TRIES = 10


@dataclass(slots=True)
class Link:
    """A network interface of this network namespace.

    Attributes:
        index: Its number.
        name: Its name, as `os.fsdecode` has it: any bytes but blanks, slashes and colons.
        kind: ``bond``, ``bridge``, ``vlan``, ``team`` …; empty for hardware.
        is_up: Whether it has been set up.
        type: The type of its hardware, such as 1 for Ethernet (ARPHRD_ETHER of if_arp.h).
        parent: The name of the device that it is of, on whatever bus; empty for one that is of none, and before Linux
            5.14.
        has_xdp: Whether an XDP program is attached.
        addresses: Its addresses with their prefix lengths, such as ``192.0.2.1/24``; without link-local ones.
        default_routes: The families, 4 or 6, that have a default route by it, in whatever table.
        routes: Where the other routes lead that somebody has made, such as ``10.0.0.0/8 (table 77)``.
    """

    index: int
    name: str
    kind: str
    is_up: bool
    addresses: list[str] = field(default_factory=list)
    default_routes: set[int] = field(default_factory=set)
    routes: list[str] = field(default_factory=list)
    type: int = 1
    parent: str = ""
    has_xdp: bool = False


def links() -> dict[int, Link]:
    """The network interfaces, by number: a name may be that of another interface in another namespace's eyes.

    Raises:
        OSError: The kernel does not say.
    """
    found = dict(_parse_link(message) for message in messages(GET_LINK))
    for message in messages(GET_ADDRESS):
        _add_address(found, message)
    ways = _nexthops()
    for message in messages(GET_ROUTE):
        _add_route(found, ways, message)
    return found


def xdp_sockets() -> dict[int, int] | None:
    """The interfaces that AF_XDP sockets of this namespace are bound to, by the sockets' inodes.

    None where there may be such sockets, and the kernel cannot list them.

    Raises:
        OSError: The kernel does not say.
    """
    try:
        found = messages(_BY_FAMILY, struct.pack("=BBHIIQ", _AF_XDP, 0, 0, 0, _SHOW_INFO, 0), _SOCK_DIAG)
    except OSError:
        # Without the diagnosis of these sockets: /proc/net/protocols has their number (Linux 7.3, net/core/sock.c).
        counts = [line.split()[2] for line in sysfs.lines(sysfs.PROC / "net/protocols") if line.startswith("XDP ")]
        return {} if all(count == "0" for count in counts) else None
    sockets = {}
    for message in found:
        (inode,) = struct.unpack_from("=I", message, 4)
        info = dict(_attributes(message[16:])).get(_INFO)
        if info is not None:
            sockets[inode] = int(struct.unpack_from("=I", info)[0])
    return sockets


def messages(request: int, body: bytes = bytes(16), protocol: int = socket.NETLINK_ROUTE) -> list[bytes]:
    """All that the kernel has of one sort, each without its netlink header; none where it has no network.

    Args:
        request: Such as `GET_LINK`.
        body: What follows the header: by default that of a family that stands for all of them; the kernel reads as much
            as it needs.
        protocol: The netlink family.

    Raises:
        OSError: The kernel refused, or things changed again and again during the answer.
    """
    for _ in range(_TRIES):
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as connection:
                connection.settimeout(_PATIENCE)
                header = _HEADER.pack(_HEADER.size + len(body), request, _REQUEST_DUMP, 1, 0)
                connection.sendto(header + body, (0, 0))
                found = _receive(connection)
        except OSError as error:
            # A kernel without a network; with one, somebody has denied this process the question.
            if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT) and not (sysfs.PROC / "net/dev").exists():
                return []
            reason = f"what the network is doing cannot be asked by netlink ({error.strerror or error})"
            raise OSError(error.errno or errno.EIO, reason) from error
        if found is not None:
            return found
    raise OSError(errno.EAGAIN, "the network changes faster than the kernel lists it")


def _receive(connection: socket.socket) -> list[bytes] | None:
    """An answer, to its end; None where it is of no use, things having changed meanwhile."""
    found: list[bytes] = []
    whole = True
    while True:
        data = connection.recv(_ANSWER)
        while data:
            length, kind, flags, _, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            whole = whole and not flags & _INTERRUPTED
            if kind == _DONE:
                return found if whole else None
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", body)
                raise OSError(-code, os.strerror(-code))
            found.append(body)
            data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return length + 3 & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]  # without the flags of nesting and byte order
        data = data[_aligned(length) :]


def _parse_link(message: bytes) -> tuple[int, Link]:
    kind, index, flags = struct.unpack_from("=HiI", message, 2)
    attributes = dict(_attributes(message[16:]))
    info = dict(_attributes(attributes.get(_LINK_INFO, b"")))
    xdp = dict(_attributes(attributes.get(_XDP, b"")))
    return index, Link(
        index,
        _text(attributes.get(_NAME, b"")),
        _text(info.get(_INFO_KIND, b"")),
        bool(flags & _UP),
        type=kind,
        parent=_text(attributes.get(_PARENT, b"")),
        has_xdp=xdp.get(_XDP_ATTACHED, b"\0")[0] != 0,
    )


def _text(data: bytes) -> str:
    return os.fsdecode(data.rstrip(b"\0"))


def _add_address(found: dict[int, Link], message: bytes) -> None:
    family, length, _, _, index = struct.unpack_from("=BBBBI", message)
    attributes = dict(_attributes(message[8:]))
    # Of a point-to-point link the other attribute is the far end's address.
    packed = attributes.get(_LOCAL) or attributes.get(_ADDRESS)
    if family not in _VERSIONS or packed is None or index not in found:
        return
    address = ipaddress.ip_address(packed)
    if not address.is_link_local:
        found[index].addresses.append(f"{address}/{length}")


def _nexthops() -> dict[int, list[int]]:
    """The numbers of the interfaces that nexthop objects leave by: a route may name such an object alone."""
    try:
        found = messages(GET_NEXTHOP, bytes(8))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}  # before Linux 5.3 there are none
        raise
    ways: dict[int, list[int]] = {}
    groups: dict[int, list[int]] = {}
    for message in found:
        attributes = dict(_attributes(message[8:]))
        (number,) = struct.unpack("=I", attributes[_NEXTHOP_ID])
        if _NEXTHOP_GROUP in attributes:
            groups[number] = [one for one, _ in struct.iter_unpack("=II", attributes[_NEXTHOP_GROUP])]
        elif _NEXTHOP_WAY_OUT in attributes:
            ways[number] = list(struct.unpack("=I", attributes[_NEXTHOP_WAY_OUT]))
    return ways | {number: [way for one in members for way in ways.get(one, ())] for number, members in groups.items()}


def _add_route(found: dict[int, Link], nexthops: dict[int, list[int]], message: bytes) -> None:
    family, length, _, _, table, protocol, _, kind = struct.unpack_from("=8B", message)
    version = _VERSIONS.get(family)
    attributes = dict(_attributes(message[12:]))
    packed = attributes.get(_DESTINATION, bytes(4 if version == 4 else 16))
    # What the kernel makes itself goes with an address, or is there for as long as the interface is up.
    if version is None or kind != _UNICAST or (length and protocol == _BY_KERNEL):
        return
    destination = ipaddress.ip_address(packed)
    if destination.is_link_local:
        return
    if _TABLE in attributes:
        (table,) = struct.unpack("=I", attributes[_TABLE])
    for index in _ways_out(attributes, nexthops):
        link = found.get(index)
        if link is None:
            continue
        if length:
            where = f"{destination}/{length}{'' if table == _MAIN else f' (table {table})'}"
            link.routes += [] if where in link.routes else [where]
        else:
            link.default_routes.add(version)


def _ways_out(attributes: dict[int, bytes], nexthops: dict[int, list[int]]) -> set[int]:
    """The numbers of the interfaces that a route leaves by."""
    ways = set()
    if _WAY_OUT in attributes:
        ways |= set(struct.unpack("=I", attributes[_WAY_OUT][:4]))
    several = attributes.get(_WAYS_OUT, b"")
    while len(several) >= 8:
        length, _, way = struct.unpack_from("=HHI", several)
        ways.add(way)
        several = several[max(_aligned(length), 8) :]
    # With the setting nexthop_compat_mode off the object alone is named.
    if _NEXTHOP in attributes:
        (number,) = struct.unpack("=I", attributes[_NEXTHOP])
        ways.update(nexthops.get(number, ()))
    return ways
