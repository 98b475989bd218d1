"""Network cards in use: each use refused with its reason; when it has ended, the card claimed, used and given back."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import DMABuffer, HostDevice, list_devices
from pyiommufd.host import uses
from pyiommufd.host.standing import Standing, standings
from pyiommufd.testing.e1000e import E1000eDriver
from tests.guest.uses.types import Driven, Refused, Runner
from tests.patience import until

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


def found(card: HostDevice) -> list[tuple[str, str]]:
    """What speaks against a claim: the kind and the reason of each."""
    return [(refusal.kind, refusal.reason) for refusal in uses.refusals(card)]


def test_from_another_network_namespace(card: HostDevice, interface: str, run: Runner) -> None:
    """With the sysfs of the host: it shows the interface, and what it is used for is not to be seen from there."""
    run("ip", "address", "add", "192.0.2.1/24", "dev", interface)
    run("ip", "link", "set", interface, "up")
    run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", interface)
    command = ["unshare", "--net", sys.executable, "-m", "pyiommufd.cli", "claim", card.name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"what {interface} does is not seen, as it is in another network namespace" in done.stderr
    assert "[unseen]" in done.stderr
    assert "another network namespace than the machine's init" in done.stderr
    assert card.refreshed().driver == "e1000e"


def test_interface_of_the_same_name_and_number_in_another_namespace(
    card: HostDevice, interface: str, run: Runner
) -> None:
    """The device that an interface is of tells it from the host's."""
    number = Path("/sys/class/net", interface, "ifindex").read_text().strip()
    script = f"""ip link add name {interface} index {number} type veth peer name other
        exec {sys.executable} -m pyiommufd.cli plan --json {card.name}"""
    done = subprocess.run(["unshare", "--net", "sh", "-ec", script], capture_output=True, text=True)
    assert [refusal["kind"] for refusal in json.loads(done.stdout)["refusals"]] == ["unseen"]


@pytest.mark.parametrize("odd", [b"l\xff", b"e\x1b[31m", "ü\u202e".encode()], ids=repr)
def test_name_that_is_no_text(card: HostDevice, interface: str, run: Runner, odd: bytes) -> None:
    name = os.fsdecode(odd)
    run("ip", "link", "set", interface, "name", name)
    try:
        run("ip", "address", "add", "192.0.2.1/24", "dev", name)
        run("ip", "link", "set", name, "up")
        ((kind, reason),) = found(card)
        assert kind == "address"
        assert reason.endswith(" is up, with the address 192.0.2.1/24")
    finally:
        run("ip", "link", "set", name, "down")
        run("ip", "address", "flush", "dev", name)
        run("ip", "link", "set", name, "name", interface)


@pytest.fixture
def elsewhere(run: Runner) -> Iterator[None]:
    """An address of the machine that no card has."""
    run("ip", "address", "add", "198.51.100.1/32", "dev", "lo")
    run("ip", "link", "set", "lo", "up")
    yield
    run("ip", "address", "del", "198.51.100.1/32", "dev", "lo")


@pytest.mark.parametrize(
    ("routes", "reason"),
    [
        (["10.0.0.0/8"], "10.0.0.0/8"),
        (["0.0.0.0/1", "128.0.0.0/1"], "0.0.0.0/1 and 128.0.0.0/1"),
        (["10.0.0.0/8 table 77"], "10.0.0.0/8 (table 77)"),
        (["2001:db8:1::/48"], "2001:db8:1::/48"),
        (["198.51.100.9/32 scope link"], "198.51.100.9/32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_routes_without_an_address(
    card: HostDevice, interface: str, run: Runner, elsewhere: None, routes: list[str], reason: str
) -> None:
    run("ip", "link", "set", interface, "up")
    for route in routes:
        run("ip", "route", "add", *route.split(), "dev", interface)
    assert found(card) == [("route", f"routes leave by {interface}: {reason}")]
    assert standings(list_devices())[card] == Standing.IN_USE


@pytest.mark.parametrize("compatible", ["1", "0"])
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "grouped"])
def test_route_by_a_nexthop_object(
    card: HostDevice, interface: str, run: Runner, elsewhere: None, compatible: str, grouped: bool
) -> None:
    setting = Path("/proc/sys/net/ipv4/nexthop_compat_mode")
    setting.write_text(compatible)
    run("ip", "link", "set", interface, "up")
    until(lambda: Path("/sys/class/net", interface, "carrier").read_text() == "1\n")
    run("ip", "nexthop", "add", "id", "7", "via", "192.0.2.2", "dev", interface, "onlink")
    try:
        if grouped:
            run("ip", "nexthop", "add", "id", "8", "group", "7")
        number = "8" if grouped else "7"
        run("ip", "route", "add", "10.0.0.0/8", "nhid", number)
        assert found(card) == [("route", f"routes leave by {interface}: 10.0.0.0/8")]
        run("ip", "route", "add", "default", "nhid", number)
        assert ("default-route", f"the default route leaves by {interface}") in found(card)
    finally:
        setting.write_text("1")
        run("ip", "nexthop", "flush")


def test_route_of_a_vrf(card: HostDevice, interface: str, run: Runner) -> None:
    run("ip", "link", "add", "red", "type", "vrf", "table", "10")
    try:
        run("ip", "link", "set", "red", "up")
        run("ip", "link", "set", interface, "master", "red")
        run("ip", "link", "set", interface, "up")
        run("ip", "route", "add", "10.0.0.0/8", "dev", interface, "vrf", "red")
        assert found(card) == [("route", f"routes leave by {interface}: 10.0.0.0/8 (table 10)")]
    finally:
        run("ip", "link", "delete", "red")


def test_packet_socket(card: HostDevice, interface: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as listener:
        listener.bind((interface, 0x0300))
        holder = f"pid {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
        assert found(card) == [("held", f"a packet socket of {holder} is bound to {interface}")]
        assert standings(list_devices())[card] == Standing.IN_USE
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300):
        assert found(card) == []  # one of all interfaces


def test_xdp_socket(card: HostDevice, interface: str, run: Runner) -> None:
    """As far as Linux lets one be bound: with its memory and two rings (Documentation/networking/af_xdp.rst)."""
    run("ip", "link", "set", interface, "up")
    family, level = 44, 283  # AF_XDP, SOL_XDP
    with socket.socket(family, socket.SOCK_RAW, 0) as express, mmap.mmap(-1, 64 << 12) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        express.setsockopt(level, 4, struct.pack("=QQIIII", address, 64 << 12, 4096, 0, 0, 0))  # XDP_UMEM_REG
        for option in (5, 6, 2):  # XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING
            express.setsockopt(level, option, 64)
        libc = ctypes.CDLL(None, use_errno=True)
        where = struct.pack("=HHIII", family, 2, socket.if_nametoindex(interface), 0, 0)  # XDP_COPY
        assert libc.bind(express.fileno(), where, len(where)) == 0, os.strerror(ctypes.get_errno())
        holder = f"pid {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
        assert found(card) == [("held", f"an AF_XDP socket of {holder} is bound to {interface}")]
    assert until(lambda: found(card) == [])


def test_xdp_program(card: HostDevice, interface: str) -> None:
    """One that passes everything: r0 = XDP_PASS; exit. It leaves with the link that it is attached by."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")

    def bpf(command: int, attributes: bytes) -> int:
        number = libc.syscall(321, command, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes))
        assert number >= 0, os.strerror(ctypes.get_errno())
        return int(number)

    # BPF_PROG_LOAD of BPF_PROG_TYPE_XDP, to be attached as BPF_XDP (37); BPF_LINK_CREATE (28), XDP_FLAGS_SKB_MODE.
    head = struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(licence))
    program = bpf(5, head + struct.pack("=IIQII16sII", 0, 0, 0, 0, 0, b"", 0, 37))
    link = bpf(28, struct.pack("=IIII", program, socket.if_nametoindex(interface), 37, 2))
    try:
        assert found(card) == [("held", f"an XDP program is attached to {interface}")]
        assert standings(list_devices())[card] == Standing.IN_USE
    finally:
        os.close(link)
        os.close(program)


def test_netconsole(card: HostDevice, interface: str, run: Runner) -> None:
    run("ip", "link", "set", interface, "up")
    target = Path("/sys/kernel/config/netconsole/test")
    target.mkdir()
    try:
        for name, value in (("dev_name", interface), ("local_ip", "192.0.2.1"), ("remote_ip", "192.0.2.2")):
            (target / name).write_text(value)
        assert found(card) == []
        (target / "enabled").write_text("1")
        assert found(card) == [("held", f"netconsole sends the kernel's messages by {interface}")]
    finally:
        (target / "enabled").write_text("0")
        target.rmdir()


def test_can_bus(run: Runner, refused: Refused) -> None:
    (card,) = (one for one in list_devices("pci") if one.driver == "kvaser_pci")
    assert found(card) == []
    (name,) = (path.name for path in (card.sys_path / "net").iterdir())
    run("ip", "link", "set", name, "type", "can", "bitrate", "500000")
    run("ip", "link", "set", name, "up")
    try:
        assert (card.name, "held", f"{name} is up, as CAN") in refused(card)
        assert standings(list_devices())[card] == Standing.IN_USE
    finally:
        run("ip", "link", "set", name, "down")
    assert found(card) == []
