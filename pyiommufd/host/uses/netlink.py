"""What the kernel says of its network by rtnetlink: addresses, default routes, and kinds of interfaces.

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

# Numbers: Linux 7.3, include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h.
GET_LINK, GET_ADDRESS, GET_ROUTE = 18, 22, 26
_REQUEST_DUMP = 0x301
_DONE, _ERROR, _INTERRUPTED = 3, 2, 0x10
_NAME, _LINK_INFO, _INFO_KIND = 3, 18, 1
_ADDRESS, _LOCAL = 1, 2
_WAY_OUT, _WAYS_OUT = 4, 9
_UNICAST = 1
_UP = 1
_HEADER = struct.Struct("=IHHII")
_ANSWER = 1 << 20
_PATIENCE = 10.0
_TRIES = 10


@dataclass(slots=True)
class Link:
    """A network interface of this network namespace.

    Attributes:
        name: Its name.
        kind: ``bond``, ``bridge``, ``vlan``, ``team`` …; empty for hardware.
        is_up: Whether it has been set up.
        addresses: Its addresses with their prefix lengths, such as ``192.0.2.1/24``; without link-local ones.
        default_routes: The families, 4 or 6, that have a default route by it, in whatever table.
    """

    name: str
    kind: str
    is_up: bool
    addresses: list[str] = field(default_factory=list)
    default_routes: set[int] = field(default_factory=set)


def links() -> dict[str, Link]:
    """The network interfaces, by name.

    Raises:
        OSError: The kernel does not say.
    """
    by_index = dict(_parse_link(message) for message in messages(GET_LINK))
    for message in messages(GET_ADDRESS):
        _add_address(by_index, message)
    for message in messages(GET_ROUTE):
        _add_route(by_index, message)
    return {link.name: link for link in by_index.values()}


def messages(request: int) -> list[bytes]:
    """All that the kernel has of one sort, each without its netlink header; none where it has no network.

    Args:
        request: `GET_LINK`, `GET_ADDRESS` or `GET_ROUTE`.

    Raises:
        OSError: The kernel refused, or things changed again and again during the answer.
    """
    for _ in range(_TRIES):
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as connection:
                connection.settimeout(_PATIENCE)
                # The family that stands for all of them; the kernel reads as much of the body as it needs.
                connection.sendto(_HEADER.pack(_HEADER.size + 16, request, _REQUEST_DUMP, 1, 0) + bytes(16), (0, 0))
                found = _receive(connection)
        except OSError as error:
            # A kernel without a network; with one, somebody has denied this process the question.
            if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT) and not (sysfs.PROC / "net/dev").exists():
                return []
            reason = f"what the network is doing cannot be asked by rtnetlink ({error.strerror or error})"
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
    index, flags = struct.unpack_from("=iI", message, 4)
    attributes = dict(_attributes(message[16:]))
    info = dict(_attributes(attributes.get(_LINK_INFO, b"")))
    return index, Link(_text(attributes.get(_NAME, b"")), _text(info.get(_INFO_KIND, b"")), bool(flags & _UP))


def _text(data: bytes) -> str:
    return os.fsdecode(data.rstrip(b"\0"))


def _add_address(by_index: dict[int, Link], message: bytes) -> None:
    family, length, _, _, index = struct.unpack_from("=BBBBI", message)
    attributes = dict(_attributes(message[8:]))
    # Of a point-to-point link the other attribute is the far end's address.
    packed = attributes.get(_LOCAL) or attributes.get(_ADDRESS)
    if family not in (socket.AF_INET, socket.AF_INET6) or packed is None or index not in by_index:
        return
    address = ipaddress.ip_address(packed)
    if not address.is_link_local:
        by_index[index].addresses.append(f"{address}/{length}")


def _add_route(by_index: dict[int, Link], message: bytes) -> None:
    family, destination, _, _, _, _, _, kind = struct.unpack_from("=8B", message)
    version = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}.get(family)
    if version is None or destination or kind != _UNICAST:
        return
    attributes = dict(_attributes(message[12:]))
    ways = [attributes[_WAY_OUT][:4]] if _WAY_OUT in attributes else []
    several = attributes.get(_WAYS_OUT, b"")
    while len(several) >= 8:
        (length,) = struct.unpack_from("=H", several)
        ways.append(several[4:8])
        several = several[max(_aligned(length), 8) :]
    for way in ways:
        (index,) = struct.unpack("=i", way)
        if index in by_index:
            by_index[index].default_routes.add(version)
