"""What the kernel answers to rtnetlink requests, made by hand where this machine does not have it."""

from __future__ import annotations

import errno
import ipaddress
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
    monkeypatch.setattr(netlink, "messages", lambda request, *more: answers.get(request, []))

    def answer(request: int, message: bytes) -> None:
        answers.setdefault(request, []).append(message)

    return answer


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def link(index: int, name: str, flags: int, kind: str = "") -> bytes:
    info = attribute(18 | 0x8000, attribute(1, kind.encode() + b"\0")) if kind else b""
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + attribute(3, name.encode() + b"\0") + info


def address(index: int, text: str, length: int, *, peer: str = "") -> bytes:
    one = ipaddress.ip_address(text)
    own = attribute(2, one.packed) if one.version == 4 else b""
    other = attribute(1, ipaddress.ip_address(peer).packed if peer else one.packed)
    return struct.pack("=BBBBI", 2 if one.version == 4 else 10, length, 0, 0, index) + other + own


def route(
    *ways: int, family: int = 2, length: int = 0, table: int = 254, kind: int = 1, several: bool = False
) -> bytes:
    if several:
        nested = attribute(5, bytes(4))
        out = attribute(9, b"".join(struct.pack("=HBBi", 8 + len(nested), 0, 0, way) + nested for way in ways))
    else:
        out = b"".join(attribute(4, struct.pack("=i", way)) for way in ways)
    return (
        struct.pack("=8BI", family, length, 0, 0, table, 3, 0, kind, 0) + attribute(15, struct.pack("=I", table)) + out
    )


def test_of_this_machine() -> None:
    found = {link.name: link for link in netlink.links().values()}
    assert found["lo"].is_up
    assert "127.0.0.1/8" in found["lo"].addresses
    assert not found["lo"].default_routes


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


def test_default_routes(answer: Answer) -> None:
    for index in range(1, 9):
        answer(netlink.GET_LINK, link(index, f"eth{index}", 1))
    answer(netlink.GET_ROUTE, route(1))
    answer(netlink.GET_ROUTE, route(2, family=10))
    answer(netlink.GET_ROUTE, route(3, 4, several=True))
    answer(netlink.GET_ROUTE, route(5, table=100))
    answer(netlink.GET_ROUTE, route(6, length=24))
    answer(netlink.GET_ROUTE, route(7, kind=7))  # unreachable
    answer(netlink.GET_ROUTE, route(8, family=28))  # MPLS
    answer(netlink.GET_ROUTE, route(99))
    found = {index: sorted(link.default_routes) for index, link in netlink.links().items()}
    assert found == {1: [4], 2: [6], 3: [4], 4: [4], 5: [4], 6: [], 7: [], 8: []}


def test_other_routes(answer: Answer) -> None:
    """By whatever way out, table and family; what the kernel makes itself is left out."""
    for index in range(1, 9):
        answer(netlink.GET_LINK, link(index, f"eth{index}", 1))
    packed = ipaddress.ip_address("10.0.0.0").packed
    answer(netlink.GET_ROUTE, route(1, length=8) + attribute(1, packed))
    answer(netlink.GET_ROUTE, route(2, 3, length=8, several=True) + attribute(1, packed))
    by_kernel = bytearray(route(4, length=8) + attribute(1, packed))
    by_kernel[5] = 2
    answer(netlink.GET_ROUTE, bytes(by_kernel))
    fe80 = ipaddress.ip_address("fe80::").packed
    answer(netlink.GET_ROUTE, route(4, length=64, family=10) + attribute(1, fe80))
    answer(netlink.GET_NEXTHOP, bytes(8) + attribute(1, struct.pack("=I", 7)) + attribute(5, struct.pack("=I", 5)))
    answer(netlink.GET_NEXTHOP, bytes(8) + attribute(1, struct.pack("=I", 8)) + attribute(4, b""))  # a black hole
    group = struct.pack("=IBBHIBBH", 7, 0, 0, 0, 8, 0, 0, 0)
    answer(netlink.GET_NEXTHOP, bytes(8) + attribute(1, struct.pack("=I", 9)) + attribute(2, group))
    answer(netlink.GET_ROUTE, route(length=8) + attribute(1, packed) + attribute(30, struct.pack("=I", 9)))
    answer(netlink.GET_ROUTE, route(length=8) + attribute(1, packed) + attribute(30, struct.pack("=I", 99)))
    found = {index: found.routes for index, found in netlink.links().items() if found.routes}
    assert found == {index: ["10.0.0.0/8"] for index in (1, 2, 3, 5)}


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
