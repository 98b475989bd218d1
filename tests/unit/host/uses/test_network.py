"""Uses of network interfaces: those that a guest cannot show, and the words for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.host import uses
from pyiommufd.host.uses import snapshot
from pyiommufd.host.uses.foreign_links import ForeignLinks
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
    host.link("eth0").default_routes |= {6, 4}
    assert host.refusals() == [
        ("default-route", "the default route leaves by eth0"),
        ("default-route", "the IPv6 default route leaves by eth0"),
        ("address", "eth0 is up, with the addresses 192.0.2.1/24 and 2001:db8::1/64"),
    ]


def test_vlan_in_a_bridge(host: Host, card: Path) -> None:
    vlan = host.interface_above(host.interface(card, "eth0"), name="eth0.5", kind="vlan")
    bridge = host.interface_above(vlan, name="br0", kind="bridge", master=True)
    (bridge / "bridge").mkdir()
    host.link("br0").default_routes.add(4)
    host.link("br0").addresses.append("192.0.2.1/24")
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
        host.link("up").kind = ""
    assert host.refusals() == ([(refusal, f"its interface eth0 is in the {refusal} up")] if refusal else [])


def test_interface_in_another_namespace(host: Host, card: Path) -> None:
    (card / "net").mkdir()
    ((kind, reason),) = host.refusals()
    assert kind == "held"
    assert "another network namespace" in reason


def test_sysfs_of_another_network_namespace(host: Host, card: Path) -> None:
    """Of a container, by a process that has gone to the host's network namespace and kept the container's /sys."""
    (card / "net").mkdir()
    host.links[2] = Link(2, "eth0", "", True, ["192.0.2.1/24"], parent=card.name)
    reason = (
        "its network interface is in another network namespace than this /sys shows, and not seen: look on the host"
    )
    assert host.refusals() == [("unseen", reason)]


@pytest.mark.parametrize(("driver", "place"), [("virtio-pci", "virtio3"), ("xhci_hcd", "usb1/1-1/1-1:1.0")])
def test_interface_in_another_namespace_of_what_is_below(host: Host, driver: str, place: str) -> None:
    card = host.fake.pci("0000:00:01.0", driver=driver, class_code=0x0C0330 if driver == "xhci_hcd" else 0x020000)
    (card / place / "net").mkdir(parents=True)
    ((kind, reason),) = host.refusals()
    assert kind == "held"
    assert "another network namespace" in reason
    assert set(uses.in_use([host.device()])) == {host.device()}


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


def test_other_network_namespace_that_cannot_be_entered(
    host: Host, card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set up there for a card that is up is unknown."""
    host.interface(card, "eth0")
    unseen = ["pid 70 (inner) (Operation not permitted)"]
    monkeypatch.setattr(snapshot, "foreign_links", lambda namespaces: ForeignLinks(unseen=unseen))
    reason = "whether an interface of another network namespace stands above eth0 cannot be seen"
    assert host.refusals() == [("unseen", f"{reason}: {unseen[0]}; look on the host, as root")]
    host.link("eth0").is_up = False
    assert host.refusals() == []


UNSEEN = (
    "unseen",
    "what eth0 does cannot be seen from here: its network namespace is not that of this process; look on the host, or "
    "by nsenter --net=/proc/1/ns/net pyiommufd …",
)


@pytest.mark.parametrize(
    "other",
    [
        None,
        Link(2, "eth0", "veth", parent=""),
        Link(2, "eth0", parent="0000:00:09.0"),
        Link(2, "eth1", parent="0000:00:01.0"),
        Link(2, "eth1"),
    ],
    ids=["none of that number", "a virtual one", "another card's", "the card's second", "another one, Linux 5.13"],
)
def test_interface_of_another_namespace_that_sysfs_shows(host: Host, card: Path, other: Link | None) -> None:
    """What this process's network namespace has of that number is not taken for it, nor what stands above that."""
    host.interface_above(host.interface(card, "eth0", "192.0.2.1/24"), name="br0", kind="bridge", master=True)
    host.link("br0").addresses.append("192.0.2.2/24")
    del host.links[2]
    if other is not None:
        other.addresses = ["192.0.2.3/24"]
        other.is_up = True
        host.links[2] = other
    assert host.refusals() == [UNSEEN]
    assert set(uses.in_use([host.device()])) == {host.device()}


def test_interface_of_a_kernel_that_names_no_parents(host: Host, card: Path) -> None:
    """Before Linux 5.14."""
    host.interface(card, "eth0", "192.0.2.1/24")
    host.link("eth0").parent = None
    assert host.refusals() == [("address", "eth0 is up, with the address 192.0.2.1/24")]


def test_name_that_is_no_text(host: Host, card: Path) -> None:
    host.interface(card, "l\udcff\x1b]", "192.0.2.1/24")
    assert host.refusals() == [("address", "l\\xff\\x1b] is up, with the address 192.0.2.1/24")]


def test_pppoe_by_a_name_with_a_separator(host: Host, card: Path) -> None:
    """The kernel takes ASCII's blanks for such, Python more (Linux 7.3, dev_valid_name in net/core/dev.c)."""
    host.interface(card, "a\u2028b\x1c")
    sessions = host.fake.proc / "net/pppoe"
    sessions.parent.mkdir(exist_ok=True)
    sessions.write_text("Id       Address              Device\n0000002A 52:54:00:12:34:56 a\u2028b\x1c\n")
    assert host.refusals() == [("held", "a PPPoE session goes by a\\u2028b\\x1c")]


def test_routes(host: Host, card: Path) -> None:
    host.interface(card, "eth0")
    host.link("eth0").routes["10.0.0.0/8"] = None
    assert host.refusals() == [("route", "a route leaves by eth0: 10.0.0.0/8")]
    host.link("eth0").routes.update(dict.fromkeys(["0.0.0.0/1", "128.0.0.0/1 (table 7)"]))
    assert host.refusals() == [("route", "routes leave by eth0: 10.0.0.0/8, 0.0.0.0/1 and 128.0.0.0/1 (table 7)")]


@pytest.mark.parametrize(
    ("hardware", "what"),
    [(3, "an AX.25"), (280, "a CAN"), (290, "an MCTP"), (804, "an IEEE 802.15.4"), (820, "a Phonet"), (32, None)],
)
def test_interfaces_without_addresses(host: Host, card: Path, hardware: int, what: str | None) -> None:
    host.interface(card, "some0", is_up=False)
    host.link("some0").hardware = hardware
    assert host.refusals() == []
    host.link("some0").is_up = True
    assert host.refusals() == ([("held", f"some0 is up, as {what} interface")] if what else [])


@pytest.fixture
def messages(host: Host, card: Path) -> Path:
    """A card that is up, with netconsole: its folder in configfs, without targets."""
    host.interface(card, "eth0")
    # Linux 7.3, fs/proc/consoles.c: name and number of the console, what it can do, its flags.
    (host.fake.proc / "consoles").write_text("netcon0              -W- (E    N )\n")
    folder = host.fake.root / "kernel/config/netconsole"
    folder.mkdir(parents=True)
    return folder


def target(folder: Path, name: str, device: str, *, enabled: bool = True) -> None:
    (folder / name).mkdir()
    (folder / name / "enabled").write_text(f"{enabled:d}\n")
    (folder / name / "dev_name").write_text(f"{device}\n")


HELD = [("held", "netconsole sends the kernel's messages by eth0")]


def test_netconsole_by_configfs(host: Host, messages: Path) -> None:
    target(messages, "off", "eth0", enabled=False)
    assert host.refusals() == []
    target(messages, "on", "eth0")
    assert host.refusals() == HELD
    assert set(uses.in_use([host.device()])) == {host.device()}


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ("netconsole=@10.0.0.1/eth0,@10.0.0.2/", True),
        ("quiet netconsole=6665@/,@10.0.0.2/", True),
        ('"netconsole=+@/lo,@10.0.0.2/;r@/eth0,@10.0.0.2/12:34:56:78:9a:bc" quiet', True),
        ('netconsole.netconsole="@/eth0,@10.0.0.2/"', True),
        ("netconsole=@/eth0,@10.0.0.2/ netconsole=@/lo,@10.0.0.2/", False),
        ("xnetconsole=@/eth0,@10.0.0.2/", False),
    ],
)
def test_netconsole_of_the_command_line(host: Host, messages: Path, options: str, held: bool) -> None:
    """The form of the option: Linux 7.3, netconsole_parser_cmdline in drivers/net/netconsole.c."""
    host.interface(host.fake.root / "devices/virtual", "lo")
    (host.fake.proc / "cmdline").write_text(f"{options}\n")
    assert host.refusals() == (HELD if held else [])


def test_netconsole_of_the_command_line_that_configfs_shows(host: Host, messages: Path) -> None:
    (host.fake.proc / "cmdline").write_text("netconsole=@/eth0,@10.0.0.2/\n")
    assert host.refusals() == HELD
    target(messages, "cmdline0", "eth0", enabled=False)
    assert host.refusals() == []


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no configfs", "mount configfs on /sys/kernel/config, or look on the host"),
        ("renamed", "no interface here has the name eth9, which it was given"),
        (
            "module",
            "one that its module was loaded with shows after mkdir /sys/kernel/config/netconsole/cmdline0",
        ),
        ("static module", "those that its module was loaded with do not show; unload it"),
    ],
)
def test_netconsole_whose_targets_do_not_show(
    host: Host, messages: Path, monkeypatch: pytest.MonkeyPatch, case: str, reason: str
) -> None:
    if case == "renamed":
        (host.fake.proc / "cmdline").write_text("netconsole=@/eth9,@10.0.0.2/\n")
    if "module" in case:
        host.fake.file("module/netconsole/initstate", "live")
    if case in ("no configfs", "static module"):
        messages.rmdir()
    if case == "static module":
        monkeypatch.setattr("os.path.ismount", lambda path: str(path).endswith("/sys/kernel/config"))
    unseen = ("unseen", f"whether netconsole sends the kernel's messages by eth0 cannot be seen: {reason}")
    assert host.refusals() == [unseen]
    host.link("eth0").is_up = False
    assert host.refusals() == []
    # Without a target there is no console.
    host.link("eth0").is_up = True
    (host.fake.proc / "consoles").write_text("ttyS0                -W- (EC p a)    4:64\n")
    assert host.refusals() == []


def test_module_of_netconsole_without_hidden_targets(host: Host, messages: Path) -> None:
    host.fake.file("module/netconsole/initstate", "live")
    target(messages, "cmdline0", "", enabled=False)
    assert host.refusals() == []
