"""What the host does with a device's network interfaces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import Refusal
from .. import sysfs
from ..devices import HostDevice
from .folders import listed
from .look import Look
from .netlink import Link

# What is like a bond, or like a bridge, for whoever loses a member of it.
_MASTERS = {"bond": "bond", "team": "bond", "bridge": "bridge", "openvswitch": "bridge"}

# Interfaces that are used without an IP address, by their type (Linux 7.3, include/uapi/linux/if_arp.h).
_WITHOUT_IP = {3: "AX.25", 280: "CAN", 290: "MCTP", 804: "IEEE 802.15.4", 820: "Phonet"}


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a device, or one above it.

    Attributes:
        folder: Its folder, without links.
        lowest: The interface of the device that it stands on; itself where it is one.
    """

    folder: Path
    lowest: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    def __str__(self) -> str:
        return self.name if self.name == self.lowest else f"{self.name}, above {self.lowest}"


def interfaces(device: HostDevice, look: Look) -> dict[str, Interface]:
    """The device's network interfaces, and the bonds, bridges, VLANs and others above them, by name."""
    own = [path for folder in look.folders(device) if folder.name == "net" for path in folder.iterdir()]
    pending = [Interface(path.resolve(), path.name) for path in sorted(own) if path.is_dir()]
    found: dict[str, Interface] = {}
    while pending:
        interface = pending.pop(0)
        if interface.name not in found:
            found[interface.name] = interface
            above = sorted(interface.folder.glob("upper_*"))
            pending += [Interface(path.resolve(), interface.lowest) for path in above]
    return found


def network_refusals(device: HostDevice, look: Look, found: dict[str, Interface]) -> Iterator[Refusal]:
    """Routes, addresses, membership in bonds and bridges, and what uses an interface without either.

    Args:
        device: The device.
        look: At the machine.
        found: What `interfaces` has found of the device.
    """
    links = {name: _link(interface, look) for name, interface in found.items()}
    for interface in found.values():
        yield from _memberships(device, interface, look)
    for name, interface in found.items():
        link = links[name]
        if link is None:
            reason = f"what {interface} does is not seen, as it is in another network namespace than this process: "
            yield Refusal(device.name, "unseen", f"{reason}look from there (nsenter --net=/proc/1/ns/net COMMAND)")
            continue
        for version in sorted(link.default_routes):
            which = "the default route" if version == 4 else "the IPv6 default route"
            yield Refusal(device.name, "default-route", f"{which} leaves by {interface}")
        if link.routes:
            yield Refusal(device.name, "route", f"routes leave by {interface}: {listed(link.routes)}")
        if link.is_up and link.addresses:
            plural = "es" if len(link.addresses) > 1 else ""
            reason = f"{interface} is up, with the address{plural} {listed(link.addresses)}"
            yield Refusal(device.name, "address", reason)
        yield from (Refusal(device.name, "held", reason) for reason in _without_address(interface, link, look))
    yield from _hidden_layers(device, look, found)
    if found and not look.raw_sockets.are_complete:
        yield Refusal(device.name, "unseen", "which AF_XDP sockets use its interface is not told: load xsk_diag")
    if found and not look.consoles.are_complete:
        yield Refusal(device.name, "unseen", "whether netconsole uses its interface is not told: mount configfs")
    if is_elsewhere(look.folders(device)):
        yield Refusal(device.name, "held", "its network interface is in another network namespace, as a container's is")


def _link(interface: Interface, look: Look) -> Link | None:
    """What the kernel says of an interface; None for one that is not in this process's network namespace.

    A sysfs of the host's shows it all the same, and another interface may have its name and number here: the device
    that it is of decides.
    """
    number = sysfs.read(interface.folder / "ifindex")
    link = look.links.get(int(number)) if number else None
    parent = sysfs.link_name(interface.folder / "device") or ""
    return link if link is not None and (link.name, link.parent) == (interface.name, parent) else None


def _without_address(interface: Interface, link: Link, look: Look) -> Iterator[str]:
    """Uses of an interface for which it needs no address, a sentence each."""
    if link.is_up and link.type in _WITHOUT_IP:
        yield f"{interface} is up, as {_WITHOUT_IP[link.type]}"
    if link.has_xdp:
        yield f"an XDP program is attached to {interface}"
    if users := look.raw_sockets.users.get(link.index):
        yield f"{listed(users)} {'is' if len(users) == 1 else 'are'} bound to {interface}"
    if interface.name in look.consoles.interfaces:
        yield f"netconsole sends the kernel's messages by {interface}"


def _memberships(device: HostDevice, interface: Interface, look: Look) -> Iterator[Refusal]:
    master = sysfs.link_name(interface.folder / "master")
    if master is None:
        return
    number = sysfs.read(interface.folder / "master/ifindex")
    link = look.links.get(int(number)) if number else None
    kind = _MASTERS.get(link.kind) if link is not None else None
    for word in ("bond", "bridge"):
        if (interface.folder / "master" / ("bonding" if word == "bond" else word)).is_dir():
            kind = word
    if kind is not None:
        yield Refusal(device.name, kind, f"its interface {interface} is in the {kind} {master}")


def _hidden_layers(device: HostDevice, look: Look, found: dict[str, Interface]) -> Iterator[Refusal]:
    """What stands on an interface without a sign of it there."""
    for line in sysfs.lines(sysfs.PROC / "net/pppoe")[1:]:
        # Id, the other side's address, the interface (Linux 7.3, drivers/net/ppp/pppoe.c).
        under = found.get(line.split()[-1])
        if under is not None:
            yield Refusal(device.name, "held", f"a PPPoE session goes by {under}")
    by_number = {sysfs.read(interface.folder / "ifindex"): interface for interface in found.values()}
    for link in look.foreign_links if found else ():
        under = by_number.get(str(link.below))
        if under is not None:
            reason = f"{link.name}, in another network namespace, stands above {under}"
            yield Refusal(device.name, "held", reason)


def is_elsewhere(folders: Iterable[Path]) -> bool:
    """Whether one of these folders has a network interface that this network namespace does not show.

    The folder of a device's interfaces is there for as long as it has one; in it each namespace sees its own.
    """
    return any(folder.name == "net" and _is_empty(folder) for folder in folders)


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError:
        return False
