"""Network cards in use: each use refused with its reason; when it has ended, the card claimed, used and given back."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import DMABuffer, HostDevice, list_devices
from pyiommufd.host import uses
from pyiommufd.host.overview.standing import Standing, standings
from pyiommufd.host.uses.network import is_elsewhere
from pyiommufd.testing.drivers.e1000e import E1000eDriver
from tests.guest.uses.types import Driven, Refused, Runner
from tests.patience import until

Lists = Callable[[HostDevice], bool]

GATEWAY = "10.0.2.2"
"""What answers on the network of the first card."""


@pytest.fixture(scope="session")
def cards() -> list[HostDevice]:
    return [one for one in list_devices("pci") if one.driver == "e1000e"]


@pytest.fixture
def card(cards: list[HostDevice]) -> HostDevice:
    """One with a network."""
    return cards[0]


@pytest.fixture
def interface(card: HostDevice, run: Runner) -> Iterator[str]:
    (name,) = (path.name for path in (card.sys_path / "net").iterdir())
    yield name
    run("ip", "address", "flush", "dev", name)
    run("ip", "link", "set", name, "down")
    assert uses.refusals(card) == ()


@pytest.fixture
def up(interface: str, run: Runner, card: HostDevice) -> str:
    """An interface of it that is up, and not in use yet."""
    run("ip", "link", "set", interface, "up")
    until(lambda: (card.sys_path / "net" / interface / "carrier").read_text() == "1\n")
    assert uses.refusals(card) == ()
    return interface


def test_idle_card_is_claimed_used_and_given_back(
    card: HostDevice, interface: str, run: Runner, driven: Driven
) -> None:
    def answers() -> bool:
        return (
            subprocess.run(["/.guest/busybox", "ping", "-c", "1", "-W", "2", GATEWAY], capture_output=True).returncode
            == 0
        )

    def set_up() -> None:
        run("ip", "address", "add", "10.0.2.15/24", "dev", interface)
        run("ip", "link", "set", interface, "up")

    set_up()
    assert until(answers)
    assert [refusal.kind for refusal in uses.refusals(card)] == ["address"]
    run("ip", "link", "set", interface, "down")
    assert uses.refusals(card) == ()
    memory = DMABuffer(2 * 4096)
    memory[:512] = b"s" * 512
    with driven(card) as (device, ioas):
        mapping = ioas.map(memory)
        with E1000eDriver(device, ioas) as driver:
            driver.copy(mapping.iova, mapping.iova + 4096, 512)
        mapping.unmap()
    assert memory[4096 : 4096 + 512] == b"s" * 512
    until((card.sys_path / "net" / interface).is_dir)
    set_up()
    assert "10.0.2.15/24" in run("ip", "address", "show", "dev", interface)
    assert until(answers)


def test_default_route_and_address(card: HostDevice, interface: str, run: Runner, refused: Refused) -> None:
    run("ip", "link", "set", interface, "up")
    assert uses.refusals(card) == ()
    run("ip", "address", "add", "169.254.7.7/16", "dev", interface)
    assert uses.refusals(card) == ()
    run("ip", "address", "add", "192.0.2.1/24", "dev", interface)
    address = (card.name, "address", f"{interface} is up, with the address 192.0.2.1/24")
    assert refused(card) == [address]
    run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", interface)
    assert refused(card) == [(card.name, "default-route", f"the default route leaves by {interface}"), address]
    assert standings(list_devices())[card] == Standing.IN_USE


def test_default_route_of_another_table(card: HostDevice, interface: str, run: Runner) -> None:
    """`/proc/net/route` does not show it."""
    run("ip", "link", "set", interface, "up")
    run("ip", "address", "add", "192.0.2.1/24", "dev", interface)
    run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", interface, "table", "77")
    assert "default-route" in {refusal.kind for refusal in uses.refusals(card)}
    run("ip", "route", "flush", "table", "77")


def test_default_route_by_two_cards(card: HostDevice, cards: list[HostDevice], interface: str, run: Runner) -> None:
    (other,) = (path.name for path in (cards[1].sys_path / "net").iterdir())
    ways = []
    try:
        for number, name in enumerate((interface, other)):
            run("ip", "link", "set", name, "up")
            run("ip", "address", "add", f"2001:db8:{number}::1/64", "dev", name, "nodad")
            ways += ["nexthop", "via", f"2001:db8:{number}::2", "dev", name]
        run("ip", "route", "add", "default", *ways)
        for one in cards:
            assert "default-route" in {refusal.kind for refusal in uses.refusals(one)}
    finally:
        run("ip", "address", "flush", "dev", other)
        run("ip", "link", "set", other, "down")


def test_default_route_of_ipv6(card: HostDevice, interface: str, run: Runner, refused: Refused) -> None:
    run("ip", "link", "set", interface, "up")
    run("ip", "address", "add", "2001:db8::1/64", "dev", interface, "nodad")
    run("ip", "route", "add", "default", "via", "2001:db8::2", "dev", interface)
    assert refused(card) == [
        (card.name, "default-route", f"the IPv6 default route leaves by {interface}"),
        (card.name, "address", f"{interface} is up, with the address 2001:db8::1/64"),
    ]


@pytest.mark.parametrize("kind", ["bond", "bridge"])
def test_member(card: HostDevice, interface: str, run: Runner, refused: Refused, kind: str) -> None:
    run("ip", "link", "add", "above", "type", kind)
    try:
        run("ip", "link", "set", interface, "down")
        run("ip", "link", "set", interface, "master", "above")
        member = (card.name, kind, f"its interface {interface} is in the {kind} above")
        assert refused(card) == [member]
        run("ip", "link", "set", "above", "up")
        run("ip", "address", "add", "192.0.2.1/24", "dev", "above")
        run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", "above")
        assert refused(card) == [
            member,
            (card.name, "default-route", f"the default route leaves by above, above {interface}"),
            (card.name, "address", f"above, above {interface} is up, with the address 192.0.2.1/24"),
        ]
    finally:
        run("ip", "link", "delete", "above")


def test_interface_in_another_network_namespace(
    card: HostDevice, interface: str, run: Runner, refused: Refused
) -> None:
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        run("ip", "link", "set", interface, "netns", str(other.pid))
        ((_, kind, reason),) = refused(card)
        assert kind == "held"
        assert "another network namespace" in reason
        assert standings(list_devices())[card] == Standing.IN_USE
        assert other.stdin is not None
        other.stdin.close()
    until(Path("/sys/class/net", interface).exists)


@pytest.fixture(params=["process", "name"])
def namespace(request: pytest.FixtureRequest, run: Runner) -> Iterator[tuple[str, str]]:
    """Another network namespace, of a process or of a name alone: for ``ip link set … netns``, and for a refusal."""
    if request.param == "name":
        run("ip", "netns", "add", "router")
        yield "router", "the network namespace /run/netns/router"
        run("ip", "netns", "delete", "router")
        return
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        yield str(other.pid), f"pid {other.pid} (cat)"
        other.stdin.close()


def test_interface_above_a_card_in_another_network_namespace(
    card: HostDevice, up: str, run: Runner, refused: Refused, lists: Lists, namespace: tuple[str, str]
) -> None:
    """As a container's macvlan; and what only has the card's number there is not above it."""
    where, name = namespace
    run("ip", "link", "add", "mac0", "link", up, "type", "macvlan")
    run("ip", "link", "set", "mac0", "netns", where)
    reason = f"mac0 of {name}, in another network namespace, stands above {up}"
    assert refused(card) == [(card.name, "held", reason)]
    assert lists(card)
    within = ("nsenter", f"--net=/proc/{where}/ns/net") if where.isdigit() else ("ip", "netns", "exec", where)
    run(*within, "ip", "link", "delete", "mac0")
    assert uses.refusals(card) == ()
    # One end of a pair is there, the other in a third namespace, by the number that the card has here.
    number = str(socket.if_nametoindex(up))
    run(*within, "ip", "link", "add", "two", "index", number, "type", "veth", "peer", "name", "one")
    with subprocess.Popen(
        [*within, "unshare", "--net", "sh", "-c", "echo there; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as third:
        assert third.stdin is not None
        assert third.stdout is not None
        assert third.stdout.readline() == b"there\n"
        run(*within, "ip", "link", "set", "two", "netns", str(third.pid))
        assert f"one@if{number}" in run(*within, "ip", "link", "show", "one")
        assert uses.refusals(card) == ()
        third.stdin.close()


def test_one_of_several_interfaces_in_another_network_namespace() -> None:
    """A card with several shows the others, and counts it. What is below no card counts likewise: each lo here."""
    folder = Path("/sys/devices/virtual/net")
    until(lambda: not is_elsewhere([folder]), "the namespaces of the tests before are gone")
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        assert (folder / "lo").is_dir()
        assert is_elsewhere([folder])
        assert other.stdin is not None
        other.stdin.close()
    until(lambda: not is_elsewhere([folder]))


UNSEEN = (
    "what {} does cannot be seen from here: its network namespace is not that of this process; look on the host, or by "
    "nsenter --net=/proc/1/ns/net pyiommufd …"
)


@pytest.fixture
def way_out(up: str, run: Runner) -> Iterator[str]:
    """An interface of it that is used."""
    run("ip", "address", "add", "192.0.2.1/24", "dev", up)
    run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", up)
    yield up
    run("ip", "route", "flush", "default")


def test_claim_from_another_network_namespace(card: HostDevice, way_out: str) -> None:
    """That has an interface of the same name and number; sysfs still shows those of the host."""
    number = socket.if_nametoindex(way_out)
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"{ANOTHER} && exec pyiommufd claim {card.name}", "sh", way_out, str(number)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert UNSEEN.format(way_out) in " ".join(done.stderr.split())
    assert Path(card.sys_path / "driver").resolve().name == "e1000e"


ANOTHER = 'ip link add "$1" index "$2" type bridge && ip link set "$1" up'


def test_look_from_another_network_namespace(card: HostDevice, way_out: str) -> None:
    """The way out that a refusal names leads to what there is."""
    inside = ["unshare", "--net", "python", "-c", INSIDE, card.name]
    done = subprocess.run(inside, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"unseen: {UNSEEN.format(way_out)}",
        "UNSEEN",
        f"default-route: the default route leaves by {way_out}",
        f"address: {way_out} is up, with the address 192.0.2.1/24",
    ]


INSIDE = """
import ctypes, sys
from pyiommufd import find_device, list_devices
from pyiommufd.host import uses
from pyiommufd.host.overview.standing import standings

def say():
    for refusal in uses.refusals(card):
        print(refusal.kind, refusal.reason, sep=": ")

card = find_device(sys.argv[1])
say()
print(standings(list_devices())[card].name)
with open("/proc/1/ns/net") as host:
    assert ctypes.CDLL(None).setns(host.fileno(), 0) == 0
say()
"""


@pytest.fixture
def lists() -> Lists:
    """Whether a list of devices has one as in use."""
    return lambda device: standings(list_devices())[device] == Standing.IN_USE


def test_name_that_is_no_text(card: HostDevice, interface: str, run: Runner, refused: Refused, lists: Lists) -> None:
    name = os.fsdecode(b"l\xff\x1b]n")
    run("ip", "link", "set", interface, "down")
    run("ip", "link", "set", interface, "name", name)
    try:
        run("ip", "address", "add", "192.0.2.1/24", "dev", name)
        run("ip", "link", "set", name, "up")
        run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", name)
        assert refused(card) == [
            (card.name, "default-route", "the default route leaves by l\\xff\\x1b]n"),
            (card.name, "address", "l\\xff\\x1b]n is up, with the address 192.0.2.1/24"),
        ]
        assert lists(card)
    finally:
        run("ip", "link", "set", name, "down")
        run("ip", "link", "set", name, "name", interface)


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        (["10.0.0.0/8"], "a route leaves by {}: 10.0.0.0/8"),
        (["0.0.0.0/1", "128.0.0.0/1"], "routes leave by {}: 0.0.0.0/1 and 128.0.0.0/1"),
        (["10.0.0.0/8 table 77"], "a route leaves by {}: 10.0.0.0/8 (table 77)"),
        (["10.0.0.0/8 table 7777"], "a route leaves by {}: 10.0.0.0/8 (table 7777)"),
        (["2001:db8:5::/48"], "a route leaves by {}: 2001:db8:5::/48"),
        (["2001:db8:5::/48 table 77"], "a route leaves by {}: 2001:db8:5::/48 (table 77)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_route_without_an_address(
    card: HostDevice, up: str, run: Runner, refused: Refused, lists: Lists, to: list[str], reason: str
) -> None:
    for one in to:
        run("ip", "route", "add", *one.split(), "dev", up)
    assert refused(card) == [(card.name, "route", reason.format(up))]
    assert lists(card)
    for one in to:
        run("ip", "-6" if ":" in one else "-4", "route", "delete", *one.split(), "dev", up)
    assert uses.refusals(card) == ()
    assert not lists(card)


@pytest.mark.parametrize("compat", ["1", "0"])
@pytest.mark.parametrize("to", ["10.0.0.0/8", "2001:db8:5::/48"])
def test_route_by_a_nexthop_object(
    card: HostDevice, up: str, run: Runner, refused: Refused, to: str, compat: str
) -> None:
    """By one, and by a group of them; with the mode off, the route names the object only."""
    mode = Path("/proc/sys/net/ipv4/nexthop_compat_mode")
    before = mode.read_text()
    mode.write_text(compat)
    version = "-6" if ":" in to else "-4"
    try:
        run("ip", version, "nexthop", "add", "id", "10", "dev", up)
        run("ip", "nexthop", "add", "id", "11", "group", "10")
        assert uses.refusals(card) == ()
        for number in ("10", "11"):
            run("ip", version, "route", "add", to, "nhid", number)
            assert refused(card) == [(card.name, "route", f"a route leaves by {up}: {to}")]
            run("ip", version, "route", "delete", to)
            assert uses.refusals(card) == ()
        run("ip", version, "route", "add", "default", "nhid", "11")
        which = "default route" if version == "-4" else "IPv6 default route"
        assert refused(card) == [(card.name, "default-route", f"the {which} leaves by {up}")]
    finally:
        run("ip", "nexthop", "flush")
        mode.write_text(before)


def test_route_of_a_vrf(card: HostDevice, up: str, run: Runner, refused: Refused, lists: Lists) -> None:
    run("ip", "link", "add", "vrf0", "type", "vrf", "table", "10")
    try:
        run("ip", "link", "set", "vrf0", "up")
        run("ip", "link", "set", up, "master", "vrf0")
        assert uses.refusals(card) == ()
        run("ip", "route", "add", "10.0.0.0/8", "dev", up, "table", "10")
        assert refused(card) == [(card.name, "route", f"a route leaves by {up}: 10.0.0.0/8 (table 10)")]
        assert lists(card)
        run("ip", "route", "flush", "table", "10")
        run("ip", "route", "add", "10.0.0.0/8", "dev", "vrf0")
        assert refused(card) == [(card.name, "route", f"a route leaves by vrf0, above {up}: 10.0.0.0/8")]
    finally:
        run("ip", "link", "delete", "vrf0")
    assert uses.refusals(card) == ()


def test_packet_socket(card: HostDevice, up: str, refused: Refused, lists: Lists) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.bind(("lo", 3))
        assert uses.refusals(card) == ()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 3):  # of all interfaces
        assert uses.refusals(card) == ()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.bind((up, 3))
        reason = f"a packet socket is bound to {up}, of this process (pid {os.getpid()})"
        assert refused(card) == [(card.name, "held", reason)]
        assert lists(card)
    assert uses.refusals(card) == ()


class Address(ctypes.Structure):
    """`struct sockaddr_xdp` (Linux 7.3, include/uapi/linux/if_xdp.h)."""

    _fields_ = (
        ("family", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("index", ctypes.c_uint32),
        ("queue", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
    )


AF_XDP, SOL_XDP, COPY = 44, 283, 2
RX_RING, REGISTER, FILL_RING, COMPLETION_RING = 2, 4, 5, 6

_libc = ctypes.CDLL(None, use_errno=True)


def bind(one: socket.socket, memory: ctypes.Array[ctypes.c_char], interface: str) -> None:
    """Bind a socket of AF_XDP to the first queue of an interface."""
    address = ctypes.addressof(memory) + 4095 & ~4095
    one.setsockopt(SOL_XDP, REGISTER, struct.pack("=QQIIII", address, 16 * 4096, 4096, 0, 0, 0))
    for ring in (FILL_RING, COMPLETION_RING, RX_RING):
        one.setsockopt(SOL_XDP, ring, 16)
    where = Address(AF_XDP, COPY, socket.if_nametoindex(interface), 0, 0)
    assert _libc.bind(one.fileno(), ctypes.byref(where), ctypes.sizeof(where)) == 0, os.strerror(ctypes.get_errno())


def test_xdp_socket(card: HostDevice, up: str, refused: Refused, lists: Lists) -> None:
    memory = ctypes.create_string_buffer(17 * 4096)
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as one, socket.socket(AF_XDP, socket.SOCK_RAW, 0):
        assert uses.refusals(card) == ()
        bind(one, memory, up)
        bound = (card.name, "held", f"an AF_XDP socket is bound to {up}, of this process (pid {os.getpid()})")
        assert refused(card) == [bound]
        assert lists(card)
    assert uses.refusals(card) == ()


def test_xdp_socket_that_the_kernel_does_not_list(card: HostDevice, up: str, run: Runner, refused: Refused) -> None:
    """The kernel's list ends at one whose interface is gone, and so may hide what is behind it."""
    memory = ctypes.create_string_buffer(17 * 4096)
    run("ip", "link", "add", "one", "type", "veth", "peer", "name", "other")
    run("ip", "link", "set", "one", "up")
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as one:
        bind(one, memory, "one")
        assert uses.refusals(card) == ()
        run("ip", "link", "delete", "one")
        reason = (
            f"whether an AF_XDP socket is bound to {up} cannot be seen: the kernel does not list 1 of them, for want "
            "of CONFIG_XDP_SOCKETS_DIAG, or since the interface of one is gone"
        )
        assert refused(card) == [(card.name, "unseen", reason)]
        assert standings(list_devices())[card] == Standing.UNSEEN
    assert uses.refusals(card) == ()


def bpf(command: int, attributes: bytes) -> int:
    number = _libc.syscall(321, command, attributes, len(attributes))
    assert number >= 0, os.strerror(ctypes.get_errno())
    return int(number)


def test_xdp_program(card: HostDevice, up: str, refused: Refused, lists: Lists) -> None:
    """One of two instructions: return XDP_PASS (Linux 7.3, union bpf_attr in include/uapi/linux/bpf.h)."""
    instructions = ctypes.create_string_buffer(bytes.fromhex("b700000002000000 9500000000000000"), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    places = (ctypes.addressof(instructions), ctypes.addressof(licence))
    program = bpf(5, struct.pack("=IIQQIIQ", 6, 2, *places, 0, 0, 0))
    # BPF_LINK_CREATE, with BPF_XDP, in any driver; it lasts as long as its descriptor.
    link = bpf(28, struct.pack("=IIII", program, socket.if_nametoindex(up), 37, 2))
    try:
        assert refused(card) == [(card.name, "held", f"an XDP program is attached to {up}")]
        assert lists(card)
    finally:
        os.close(link)
        os.close(program)
    assert uses.refusals(card) == ()


def test_netconsole(card: HostDevice, up: str, refused: Refused, lists: Lists) -> None:
    target = Path("/sys/kernel/config/netconsole/here")
    target.mkdir()
    try:
        values = {"dev_name": up, "local_ip": "192.0.2.1", "remote_ip": "192.0.2.2"}
        for name, value in values.items():
            (target / name).write_text(value)
        assert uses.refusals(card) == ()
        (target / "enabled").write_text("1")
        assert refused(card) == [(card.name, "held", f"netconsole sends the kernel's messages by {up}")]
        assert lists(card)
        (target / "enabled").write_text("0")
    finally:
        target.rmdir()
    assert uses.refusals(card) == ()


def test_can_bus(run: Runner, refused: Refused, lists: Lists) -> None:
    (card,) = (one for one in list_devices("pci") if one.driver == "kvaser_pci")
    (name,) = (path.name for path in (card.sys_path / "net").iterdir())
    assert uses.refusals(card) == ()
    run("ip", "link", "set", name, "up", "type", "can", "bitrate", "500000")
    assert refused(card) == [(card.name, "held", f"{name} is up, as a CAN interface")]
    assert lists(card)
    run("ip", "link", "set", name, "down")
    assert uses.refusals(card) == ()
