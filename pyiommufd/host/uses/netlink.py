"""What the kernel says of its network by rtnetlink: interfaces, their addresses, and the routes that leave by them.

`/proc/net` shows one table of routes only, of several ways out just the first, and no addresses by interface.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from pyiommufd.host import sysfs

# Numbers: Linux 7.3, include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,if_arp,nexthop,net_namespace}.h.
GET_LINK, GET_ADDRESS, GET_ROUTE, GET_NAMESPACE, GET_NEXTHOP = 18, 22, 26, 90, 106
_REQUEST_DUMP, _REQUEST_ANSWER = 0x301, 0x5
_DONE, _ERROR, _INTERRUPTED = 3, 2, 0x10
_NAME, _BELOW, _LINK_INFO, _INFO_KIND, _BELOW_IN = 3, 5, 18, 1, 37
_XDP, _XDP_ATTACHED = 43, 2
_PARENT, _PARENT_BUS = 56, 57
_ADDRESS, _LOCAL = 1, 2
_DESTINATION, _WAY_OUT, _WAYS_OUT, _TABLE, _NEXTHOP = 1, 4, 9, 15, 30
_NEXTHOP_ID, _NEXTHOP_GROUP, _NEXTHOP_WAY_OUT = 1, 2, 5
_NAMESPACE_NUMBER, _NAMESPACE_FD = 1, 3
_UNICAST = 1
_BY_KERNEL = 2
_CLONED = 0x200
_MAIN = 254
_UP = 1
_ETHERNET = 1
_VERSIONS = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}
# The first bits of such addresses, and how many.
_LINK_LOCAL = {4: (0xA9FE, 16), 6: (0xFE80 >> 6, 10)}
_HEADER = struct.Struct("=IHHII")
_ANSWER = 1 << 20
_PATIENCE = 10.0
_TRIES = 10


@dataclass(slots=True)
class Link:
    """A network interface of this network namespace.

    Attributes:
        index: Its number. Unlike the name it is in all that the kernel says of an interface.
        name: Its name, as `os.fsdecode` has it: it may be any bytes but a few.
        kind: ``bond``, ``bridge``, ``vlan``, ``team`` …; empty for hardware.
        is_up: Whether it has been set up.
        addresses: Its addresses with their prefix lengths, such as ``192.0.2.1/24``; without link-local ones.
        default_routes: The families, 4 or 6, that have a default route by it, in whatever table.
        routes: Where other routes by it lead, in the kernel's order, such as ``10.0.0.0/8`` or ``10.0.0.0/8 (table
            77)``; without those that the kernel has made itself, from an address, and link-local ones.
        hardware: The type of its hardware (``ARPHRD_…``): 1 is Ethernet.
        parent: The name of the device that it is of, empty where it is of none; None where the kernel does not say.
        has_xdp: Whether an XDP program is attached.
        below: The number of the interface that it stands on, or is the other end of; 0: none.
        below_in: The number of the network namespace that has that one; None: its own.
    """

    index: int
    name: str
    kind: str = ""
    is_up: bool = False
    addresses: list[str] = field(default_factory=list)
    default_routes: set[int] = field(default_factory=set)
    routes: dict[str, None] = field(default_factory=dict)
    hardware: int = _ETHERNET
    parent: str | None = None
    has_xdp: bool = False
    below: int = 0
    below_in: int | None = None


def bare_links() -> list[Link]:
    """The network interfaces alone, without addresses and routes.

    Raises:
        OSError: The kernel does not say.
    """
    return [_parse_link(message) for message in messages(GET_LINK)]


def namespace_number(fd: int) -> int:
    """By which number the kernel speaks here of another network namespace, by its file; -1: it has none.

    Raises:
        OSError: The kernel does not say.
    """
    body = struct.pack("=BxxxHHi", 0, 8, _NAMESPACE_FD, fd)
    (message,) = messages(GET_NAMESPACE, body, flags=_REQUEST_ANSWER)
    return int.from_bytes(dict(attributes(message[4:]))[_NAMESPACE_NUMBER], sys.byteorder, signed=True)


def links() -> dict[int, Link]:
    """The network interfaces, by their numbers.

    Raises:
        OSError: The kernel does not say.
    """
    by_index = {link.index: link for link in bare_links()}
    for message in messages(GET_ADDRESS):
        _add_address(by_index, message)
    routes = [route for route in map(_parse_route, messages(GET_ROUTE)) if route is not None]
    # With the sysctl nexthop_compat_mode off, a route does not say the ways out of its nexthop object.
    nexthops = _nexthops() if any(route.nexthop for route in routes) else {}
    for route in routes:
        for index in route.ways | nexthops.get(route.nexthop, set()):
            if index in by_index:
                _add_route(by_index[index], route)
    return by_index


def messages(
    request: int, body: bytes = bytes(16), protocol: int = socket.NETLINK_ROUTE, flags: int = _REQUEST_DUMP
) -> list[bytes]:
    """All that the kernel has of one sort, each without its netlink header; none where it has no network.

    Args:
        request: The number of the request, such as `GET_LINK`.
        body: What follows its header; all zero is the family that stands for all of them.
        protocol: The protocol of netlink that has the request.
        flags: How the kernel answers: with all that there is, or else, to one question, with an end to the answer.

    Raises:
        OSError: The kernel refused, or things changed again and again during the answer.
    """
    for _ in range(_TRIES):
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as connection:
                connection.settimeout(_PATIENCE)
                header = _HEADER.pack(_HEADER.size + len(body), request, flags, 1, 0)
                connection.sendto(header + body, (0, 0))
                found = _receive(connection)
        except OSError as error:
            # A kernel without networking has no answer; with networking, the request was denied to this process.
            if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT) and not (sysfs.PROC / "net/dev").exists():
                return []
            reason = f"what the network is doing cannot be asked by netlink ({error.strerror or error})"
            raise OSError(error.errno or errno.EIO, reason) from error
        if found is not None:
            return found
    raise OSError(errno.EAGAIN, "the network changes faster than the kernel lists it")


def _receive(connection: socket.socket) -> list[bytes] | None:
    """A complete answer; None if it is inconsistent because something changed meanwhile (NLM_F_DUMP_INTR)."""
    found: list[bytes] = []
    whole = True
    while True:
        data = connection.recv(_ANSWER)
        while data:
            length, kind, flags, _, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            whole = whole and not flags & _INTERRUPTED
            if kind in (_DONE, _ERROR):
                # What fails on the way is said at the end (Linux 7.3, net/netlink/af_netlink.c).
                code = int.from_bytes(body[:4], sys.byteorder, signed=True)
                if code < 0:
                    raise OSError(-code, os.strerror(-code))
                return found if whole else None
            found.append(body)
            data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return length + 3 & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes that a message, or a nested one, is made of: their types and their contents."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]  # without the flags of nesting and byte order
        data = data[_aligned(length) :]


def _parse_link(message: bytes) -> Link:
    hardware, index, flags = struct.unpack_from("=HiI", message, 2)
    found = dict(attributes(message[16:]))
    info, xdp = (dict(attributes(found.get(kind, b""))) for kind in (_LINK_INFO, _XDP))
    parent = _text(found[_PARENT]) if _PARENT in found else None
    # Since Linux 5.14; whatever comes after it in the list is younger still, and some of it every interface has.
    if parent is None and max(found, default=0) > _PARENT_BUS:
        parent = ""
    return Link(
        index,
        _text(found.get(_NAME, b"")),
        _text(info.get(_INFO_KIND, b"")),
        bool(flags & _UP),
        hardware=hardware,
        parent=parent,
        has_xdp=any(xdp.get(_XDP_ATTACHED, b"")),
        below=_number(found.get(_BELOW, b"")),
        below_in=_number(found[_BELOW_IN]) if _BELOW_IN in found else None,
    )


def _text(data: bytes) -> str:
    return os.fsdecode(data.rstrip(b"\0"))


def _add_address(by_index: dict[int, Link], message: bytes) -> None:
    family, length, _, _, index = struct.unpack_from("=BBBBI", message)
    found = dict(attributes(message[8:]))
    # Of a point-to-point link the other attribute is the far end's address.
    packed = found.get(_LOCAL) or found.get(_ADDRESS)
    if family not in _VERSIONS or packed is None or index not in by_index:
        return
    address = ipaddress.ip_address(packed)
    if not address.is_link_local:
        by_index[index].addresses.append(f"{address}/{length}")


@dataclass(frozen=True, slots=True)
class _Route:
    """A route to somewhere else, of IP.

    Attributes:
        version: Of IP.
        destination: Where to; empty for a default route.
        ways: The numbers of the interfaces that it leaves by.
        nexthop: The number of the nexthop object that has its ways out; 0: none.
    """

    version: int
    destination: str
    ways: frozenset[int]
    nexthop: int


def _parse_route(message: bytes) -> _Route | None:
    """A route; None for what is no use of an interface that it leaves by."""
    family, length, _, _, table, origin, _, kind, flags = struct.unpack_from("=8BI", message)
    version = _VERSIONS.get(family)
    # A clone is what the kernel has learnt of one destination, such as the size of its packets.
    if version is None or kind != _UNICAST or flags & _CLONED or (length and origin == _BY_KERNEL):
        return None
    found = dict(attributes(message[12:]))
    destination = ""
    if length:
        # A router may have a million of them; the objects of ipaddress would double the time.
        packed = found[_DESTINATION]
        first, bits = _LINK_LOCAL[version]
        if length >= bits and int.from_bytes(packed[:2]) >> 16 - bits == first:
            return None
        table = _number(found.get(_TABLE, b"")) or table
        place = "" if table == _MAIN else f" (table {table})"
        destination = f"{socket.inet_ntop(family, packed)}/{length}{place}"
    ways = {_number(found[_WAY_OUT])} if _WAY_OUT in found else set()
    several = found.get(_WAYS_OUT, b"")
    while len(several) >= 8:
        (size,) = struct.unpack_from("=H", several)
        ways.add(_number(several[4:8]))
        several = several[max(_aligned(size), 8) :]
    return _Route(version, destination, frozenset(ways), _number(found.get(_NEXTHOP, b"")))


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], sys.byteorder)


def _add_route(link: Link, route: _Route) -> None:
    if not route.destination:
        link.default_routes.add(route.version)
    else:
        link.routes[route.destination] = None


def _nexthops() -> dict[int, set[int]]:
    """The numbers of the interfaces that each nexthop object leaves by, groups included."""
    # This request is refused with a longer body (Linux 7.3, nh_valid_dump_req in net/ipv4/nexthop.c).
    objects = [dict(attributes(message[8:])) for message in messages(GET_NEXTHOP, bytes(8))]
    ways = {_number(one[_NEXTHOP_ID]): {_number(one.get(_NEXTHOP_WAY_OUT, b""))} for one in objects}
    groups = {_number(one[_NEXTHOP_ID]): one[_NEXTHOP_GROUP] for one in objects if _NEXTHOP_GROUP in one}
    for number, members in groups.items():
        for place in range(0, len(members), 8):
            ways[number] |= ways.get(_number(members[place : place + 4]), set())
    return ways
