"""What the kernel answers to rtnetlink requests, made by hand where this machine does not have it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable

import pytest

from pyiommufd.host.uses import netlink
from tests.fake_sysfs import FakeSysfs

Answer = Callable[[int, bytes], None]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Adds a message to the kernel's answer to a request."""
    answers: dict[int, list[bytes]] = {}
    monkeypatch.setattr(netlink, "messages", lambda request, body=b"": answers.get(request, []))

    def answer(request: int, message: bytes) -> None:
        answers.setdefault(request, []).append(message)

    return answer


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def link(index: int, name: str, flags: int, kind: str = "", more: bytes = b"", hardware: int = 1) -> bytes:
    info = attribute(18 | 0x8000, attribute(1, kind.encode() + b"\0")) if kind else b""
    return struct.pack("=BxHiII", 0, hardware, index, flags, 0) + attribute(3, os.fsencode(name) + b"\0") + info + more


def address(index: int, text: str, length: int, *, peer: str = "") -> bytes:
    one = ipaddress.ip_address(text)
    own = attribute(2, one.packed) if one.version == 4 else b""
    other = attribute(1, ipaddress.ip_address(peer).packed if peer else one.packed)
    return struct.pack("=BBBBI", 2 if one.version == 4 else 10, length, 0, 0, index) + other + own


def route(
    *ways: int,
    to: str = "",
    family: int = 2,
    table: int = 254,
    origin: int = 4,
    kind: int = 1,
    several: bool = False,
    nexthop: int = 0,
) -> bytes:
    where = ipaddress.ip_network(to) if to else None
    family = 10 if where is not None and where.version == 6 else family
    if several:
        nested = attribute(5, bytes(4))
        out = attribute(9, b"".join(struct.pack("=HBBi", 8 + len(nested), 0, 0, way) + nested for way in ways))
    else:
        out = b"".join(attribute(4, struct.pack("=i", way)) for way in ways)
    if where is not None:
        out += attribute(1, where.network_address.packed)
    if nexthop:
        out += attribute(30, struct.pack("=I", nexthop))
    length = where.prefixlen if where is not None else 0
    # A table of a larger number is in the attribute alone (Linux 7.3, fib_dump_info in net/ipv4/fib_semantics.c).
    head = struct.pack("=8BI", family, length, 0, 0, table if table < 256 else 252, origin, 0, kind, 0)
    return head + attribute(15, struct.pack("=I", table)) + out


def test_of_this_machine() -> None:
    lo = netlink.links()[1]
    assert lo.name == "lo"
    assert lo.is_up
    assert "127.0.0.1/8" in lo.addresses
    assert not lo.default_routes
    assert not lo.routes
    assert lo.hardware == 772
    assert lo.parent == ""


def test_links_and_addresses(answer: Answer) -> None:
    answer(netlink.GET_LINK, link(2, "eth0", 1 | 2))
    answer(netlink.GET_LINK, link(7, "bond0", 2, "bond"))
    answer(netlink.GET_ADDRESS, address(2, "192.0.2.1", 32, peer="192.0.2.9"))
    answer(netlink.GET_ADDRESS, address(2, "169.254.1.1", 16))
    answer(netlink.GET_ADDRESS, address(2, "fe80::1", 64))
    answer(netlink.GET_ADDRESS, address(7, "2001:db8::7", 64))
    answer(netlink.GET_ADDRESS, address(99, "192.0.2.3", 24))
    assert netlink.links() == {
        2: netlink.Link(2, "eth0", "", True, ["192.0.2.1/32"]),
        7: netlink.Link(7, "bond0", "bond", False, ["2001:db8::7/64"]),
    }


def by_name() -> dict[str, netlink.Link]:
    return {link.name: link for link in netlink.links().values()}


def test_what_a_link_says_of_itself(answer: Answer) -> None:
    parent = attribute(56, b"0000:01:00.0\0")
    younger = attribute(58, bytes(4))
    answer(netlink.GET_LINK, link(2, "l\udcff", 1, more=parent + younger))
    answer(netlink.GET_LINK, link(3, "br0", 0, "bridge", more=younger))
    answer(netlink.GET_LINK, link(4, "old", 0))
    attached, none = (attribute(43 | 0x8000, attribute(2, bytes([how]))) for how in (2, 0))
    answer(netlink.GET_LINK, link(5, "can0", 1, more=attached, hardware=280))
    answer(netlink.GET_LINK, link(6, "can1", 1, more=none, hardware=280))
    assert netlink.links() == {
        2: netlink.Link(2, "l\udcff", is_up=True, parent="0000:01:00.0"),
        3: netlink.Link(3, "br0", "bridge", parent=""),
        4: netlink.Link(4, "old"),
        5: netlink.Link(5, "can0", is_up=True, hardware=280, has_xdp=True),
        6: netlink.Link(6, "can1", is_up=True, hardware=280),
    }


def test_default_routes(answer: Answer) -> None:
    for index in range(1, 9):
        answer(netlink.GET_LINK, link(index, f"eth{index}", 1))
    answer(netlink.GET_ROUTE, route(1))
    answer(netlink.GET_ROUTE, route(2, family=10))
    answer(netlink.GET_ROUTE, route(3, 4, several=True))
    answer(netlink.GET_ROUTE, route(5, table=100))
    answer(netlink.GET_ROUTE, route(6, to="192.0.2.0/24"))
    answer(netlink.GET_ROUTE, route(7, kind=7))  # unreachable
    answer(netlink.GET_ROUTE, route(8, family=28))  # MPLS
    answer(netlink.GET_ROUTE, route(99))
    found = {name[3:]: sorted(link.default_routes) for name, link in by_name().items()}
    assert found == {"1": [4], "2": [6], "3": [4], "4": [4], "5": [4], "6": [], "7": [], "8": []}


def test_routes(answer: Answer) -> None:
    for index in (1, 2):
        answer(netlink.GET_LINK, link(index, f"eth{index}", 1))
    for to in ("10.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1", "2001:db8::/32", "10.0.0.0/8"):
        answer(netlink.GET_ROUTE, route(1, to=to))
    answer(netlink.GET_ROUTE, route(1, 2, to="192.0.2.0/24", several=True, table=1000))
    answer(netlink.GET_ROUTE, route(2, to="198.51.100.0/24", table=7))
    # What follows from an address, and what leads nowhere.
    for kind in (1, 2, 3, 4, 5):
        answer(netlink.GET_ROUTE, route(2, to="203.0.113.0/24", origin=2, kind=kind))
    for kind in (2, 3, 4, 5, 6, 7, 8):
        answer(netlink.GET_ROUTE, route(2, to="203.0.113.0/24", kind=kind))
    for to in ("169.254.0.0/16", "169.254.7.0/24", "fe80::/64", "fe80::/10", "febf::/16"):
        answer(netlink.GET_ROUTE, route(2, to=to))
    for to in ("169.254.0.0/15", "fe80::/9", "fec0::/10"):
        answer(netlink.GET_ROUTE, route(2, to=to))
    assert {name: list(link.routes) for name, link in by_name().items()} == {
        "eth1": ["10.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1", "2001:db8::/32", "192.0.2.0/24 (table 1000)"],
        "eth2": ["192.0.2.0/24 (table 1000)", "198.51.100.0/24 (table 7)", "169.254.0.0/15", "fe80::/9", "fec0::/10"],
    }


def nexthop(number: int, *members: int, way: int = 0) -> bytes:
    group = b"".join(struct.pack("=IBBH", member, 0, 0, 0) for member in members)
    more = attribute(2, group) if group else attribute(5, struct.pack("=I", way))
    return struct.pack("=4BI", 2, 0, 0, 0, 0) + attribute(1, struct.pack("=I", number)) + more


def test_nexthop_objects(answer: Answer) -> None:
    for index in (1, 2, 3):
        answer(netlink.GET_LINK, link(index, f"eth{index}", 1))
    answer(netlink.GET_NEXTHOP, nexthop(10, 11, 12))
    answer(netlink.GET_NEXTHOP, nexthop(11, way=1))
    answer(netlink.GET_NEXTHOP, nexthop(12, way=2))
    answer(netlink.GET_NEXTHOP, nexthop(13, way=3))
    answer(netlink.GET_ROUTE, route(nexthop=10))
    answer(netlink.GET_ROUTE, route(to="10.0.0.0/8", nexthop=11))
    answer(netlink.GET_ROUTE, route(to="10.1.0.0/16", nexthop=99))
    found = by_name()
    assert {name: list(link.routes) for name, link in found.items()} == {"eth1": ["10.0.0.0/8"], "eth2": [], "eth3": []}
    assert {name: link.default_routes for name, link in found.items()} == {"eth1": {4}, "eth2": {4}, "eth3": set()}


def test_dump_that_fails_on_the_way() -> None:
    """Its end says so; what came before is no answer."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernels:
        kernels.send(struct.pack("=IHHII", 20, 16, 2, 1, 0) + bytes(4))
        kernels.send(struct.pack("=IHHIIi", 20, 3, 2, 1, 0, -errno.ENOMEM))
        with pytest.raises(OSError, match="Cannot allocate memory"):
            netlink._receive(ours)


def test_request_that_the_kernel_refuses() -> None:
    with pytest.raises(OSError, match=r"cannot be asked by netlink \(Operation not supported\)"):
        netlink.messages(netlink.GET_LINK + 200)


@pytest.mark.parametrize("has_network", [True, False])
def test_request_that_cannot_be_made(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch, has_network: bool) -> None:
    """A kernel without a network has none; a process that may not ask does not take that for an answer."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    if not has_network:
        assert netlink.links() == {}
        return
    (fake.proc / "net").mkdir()
    (fake.proc / "net/dev").touch()
    with pytest.raises(OSError, match="Address family not supported") as caught:
        netlink.links()
    assert caught.value.errno == errno.EAFNOSUPPORT
