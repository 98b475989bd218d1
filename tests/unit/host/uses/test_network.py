"""Uses of network interfaces: those that a guest cannot show, and the words for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.host import uses
from pyiommufd.host.uses import foreign_links
from pyiommufd.host.uses.netlink import Link
from tests.unit.host.uses.host import Host


def test_idle_card(host: Host, card: Path) -> None:
    host.interface(card, "eth0")
    host.interface(host.fake.root / "devices/virtual", "lo", "127.0.0.1/8")
    assert host.refusals() == []


def test_address_of_an_interface_that_is_down(host: Host, card: Path) -> None:
    host.interface(card, "eth0", "192.0.2.1/24", is_up=False)
    assert host.refusals() == []


def test_addresses_and_routes_of_both_families(host: Host, card: Path) -> None:
    host.interface(card, "eth0", "192.0.2.1/24", "2001:db8::1/64")
    host.links["eth0"].default_routes |= {6, 4}
    assert host.refusals() == [
        ("default-route", "the default route leaves by eth0"),
        ("default-route", "the IPv6 default route leaves by eth0"),
        ("address", "eth0 is up, with the addresses 192.0.2.1/24 and 2001:db8::1/64"),
    ]


def test_interface_that_is_not_in_this_namespace(host: Host, card: Path) -> None:
    """Here is another one of that name and number, or none."""
    host.interface(card, "eth0")
    own = host.links["eth0"]
    for parent, name in (("", "eth0"), ("0000:00:09.0", "eth0"), (own.parent, "eth1")):
        host.links = {"eth0": Link(own.index, name, "", True, parent=parent)}
        ((kind, reason),) = host.refusals()
        assert kind == "unseen"
        assert "nsenter" in reason
        assert uses.in_use([host.device()]) == {host.device(): {"unseen"}}
    host.links = {}
    assert [kind for kind, _ in host.refusals()] == ["unseen"]


def test_sockets_that_cannot_be_listed(host: Host, card: Path) -> None:
    host.interface(card, "eth0")
    host.xdp_sockets = None
    assert host.refusals() == [("unseen", "which AF_XDP sockets use its interface is not told: load xsk_diag")]


@pytest.mark.parametrize(
    ("line", "refusals"),
    [
        ("netconsole=@192.0.2.1/eth0,6666@192.0.2.2/", ["held"]),
        ("netconsole=+4444@/eth9,@192.0.2.2/;@/eth0,@192.0.2.2/", ["held"]),
        ("netconsole=@/,@192.0.2.2/", ["held"]),  # without a name it is eth0
        ("netconsole=@/eth9,@192.0.2.2/", []),
        ("", []),
    ],
)
def test_netconsole_of_the_command_line(host: Host, card: Path, line: str, refusals: list[str]) -> None:
    host.interface(card, "eth0")
    (host.fake.proc / "cmdline").write_text(f"quiet {line}\n")
    assert [kind for kind, _ in host.refusals()] == refusals
    (host.fake.proc / "consoles").write_text("netcon0              -W- (E  p  )\n")
    assert [kind for kind, _ in host.refusals()] == [*refusals, "unseen"]
    (host.fake.root / "kernel/config/netconsole").mkdir(parents=True)
    assert [kind for kind, _ in host.refusals()] == refusals


def test_vlan_in_a_bridge(host: Host, card: Path) -> None:
    vlan = host.interface_above(host.interface(card, "eth0"), name="eth0.5", kind="vlan")
    bridge = host.interface_above(vlan, name="br0", kind="bridge", master=True)
    (bridge / "bridge").mkdir()
    host.links["br0"].default_routes.add(4)
    host.links["br0"].addresses.append("192.0.2.1/24")
    assert host.refusals() == [
        ("bridge", "its interface eth0.5, above eth0 is in the bridge br0"),
        ("default-route", "the default route leaves by br0, above eth0"),
        ("address", "br0, above eth0 is up, with the address 192.0.2.1/24"),
    ]


@pytest.mark.parametrize(
    ("kind", "folder", "refusal"),
    [
        ("bond", "bonding", "bond"),
        ("bond", None, "bond"),
        ("team", None, "bond"),
        ("openvswitch", None, "bridge"),
        ("vrf", None, None),
    ],
)
def test_masters(host: Host, card: Path, kind: str, folder: str | None, refusal: str | None) -> None:
    """By what the kernel calls them, or by their folder in sysfs."""
    master = host.interface_above(host.interface(card, "eth0"), name="up", kind=kind, master=True)
    if folder:
        (master / folder).mkdir()
        host.links["up"].kind = ""
    assert host.refusals() == ([(refusal, f"its interface eth0 is in the {refusal} up")] if refusal else [])


def test_interface_in_another_namespace(host: Host, card: Path) -> None:
    (card / "net").mkdir()
    ((kind, reason),) = host.refusals()
    assert kind == "held"
    assert "another network namespace" in reason


@pytest.mark.parametrize(("driver", "place"), [("virtio-pci", "virtio3"), ("xhci_hcd", "usb1/1-1/1-1:1.0")])
def test_interface_in_another_namespace_of_what_is_below(host: Host, driver: str, place: str) -> None:
    card = host.fake.pci("0000:00:01.0", driver=driver, class_code=0x0C0330 if driver == "xhci_hcd" else 0x020000)
    (card / place / "net").mkdir(parents=True)
    ((kind, reason),) = host.refusals()
    assert kind == "held"
    assert "another network namespace" in reason
    assert uses.in_use([host.device()]) == {host.device(): {"held"}}


def test_pppoe(host: Host, card: Path) -> None:
    """The session's own interface does not stand above the card's."""
    vlan = host.interface_above(host.interface(card, "eth0"), name="eth0.7", kind="vlan")
    host.interface(host.fake.root / "devices/virtual", "ppp0", "192.0.2.1/32")
    sessions = host.fake.proc / "net/pppoe"
    sessions.parent.mkdir(exist_ok=True)
    header = "Id       Address              Device\n"
    sessions.write_text(f"{header}0000002A 52:54:00:12:34:56     eth9\n")
    assert host.refusals() == []
    sessions.write_text(f"{header}0000002A 52:54:00:12:34:56 {vlan.name:>8}\n")
    assert host.refusals() == [("held", "a PPPoE session goes by eth0.7, above eth0")]


@pytest.fixture
def container(host: Host, card: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interfaces of a container, in a sysfs of its own: an end of a veth pair, and a macvlan above eth0."""
    interface = host.interface(card, "eth0")
    assert (interface / "ifindex").read_text() == "2\n"
    ours = host.fake.proc / "self/ns/net"
    ours.unlink()
    ours.symlink_to("net:[1]")
    for pid in (70, 71):
        host.process(pid, "inner", network="net:[2]")
    folder = host.fake.proc / "70/root/sys/class/net"
    for name, number, below in (("lo", 1, 1), ("eth0", 5, 9), ("mac0", 6, 2), ("tun0", 2, 0)):
        (folder / name).mkdir(parents=True)
        (folder / name / "ifindex").write_text(f"{number}\n")
        (folder / name / "iflink").write_text(f"{below}\n")
    device = foreign_links._device
    monkeypatch.setattr(foreign_links, "_device", lambda path: 99 if "/root/" in path and device(path) else 1)
    return folder


def test_interface_of_a_container_above_the_cards(host: Host, container: Path) -> None:
    assert host.refusals() == [
        ("held", "mac0 of pid 70 (inner), in another network namespace, stands above eth0"),
    ]
    assert uses.in_use([host.device()]) == {host.device(): {"held"}}


def test_service_that_sees_the_sysfs_of_the_host(host: Host, container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_links, "_device", lambda path: 1)
    assert host.refusals() == []


def test_container_whose_root_has_a_server_is_left_alone(host: Host, container: Path) -> None:
    host.mount("0:40", "/", kind="fuse.sshfs", process="70")
    assert host.refusals() == []
