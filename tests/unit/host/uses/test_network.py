"""Uses of network interfaces: those that a guest cannot show, and the words for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.host import uses
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
    assert uses.in_use([host.device()]) == {host.device()}


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
