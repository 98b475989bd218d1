"""What the host does with a device's network interfaces."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import Refusal
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.namespaces import foreign_namespaces, sees_all_processes
from pyiommufd.host.uses.folders import join_words
from pyiommufd.host.uses.netlink import Link
from pyiommufd.host.uses.snapshot import MachineSnapshot
from pyiommufd.printable import printable

# What is like a bond, or like a bridge, for whoever loses a member of it.
_MASTERS = {"bond": "bond", "team": "bond", "bridge": "bridge", "openvswitch": "bridge"}

# Interfaces that carry something else than IP, so that none has to have an address: to be up is to be used.
# Linux 7.3, include/uapi/linux/if_arp.h.
_WITHOUT_ADDRESS = {3: "an AX.25", 280: "a CAN", 290: "an MCTP", 804: "an IEEE 802.15.4", 820: "a Phonet"}


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a device, or one above it.

    Attributes:
        folder: Its folder, without links.
        lowest: The name of the interface of the device that it stands on; its own where it is that one.
        link: What the kernel says of it; None where it is in another network namespace than this process.
    """

    folder: Path
    lowest: str
    link: Link | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    def __str__(self) -> str:
        return printable(self.name if self.name == self.lowest else f"{self.name}, above {self.lowest}")


def interfaces(device: HostDevice, snapshot: MachineSnapshot) -> dict[int, Interface]:
    """The device's network interfaces, and the bonds, bridges, VLANs and others above them, by number.

    The numbers are those of the network namespace that this process's sysfs is of. It may be in another one itself,
    where that number, and that name, are some other interface's.
    """
    own = [path for folder in snapshot.folders(device) if folder.name == "net" for path in folder.iterdir()]
    pending: list[tuple[Path, Interface | None]] = [(path.resolve(), None) for path in sorted(own) if path.is_dir()]
    found: dict[int, Interface] = {}
    while pending:
        folder, below = pending.pop(0)
        index = int(sysfs.read(folder / "ifindex") or 0)
        if not index or index in found:
            continue
        link = snapshot.links.get(index) if below is None or below.link is not None else None
        if below is None and link is not None and not _is_of(link, folder):
            link = None
        found[index] = Interface(folder, below.lowest if below is not None else folder.name, link)
        pending += [(path.resolve(), found[index]) for path in sorted(folder.glob("upper_*"))]
    return found


def _is_of(link: Link, folder: Path) -> bool:
    """Whether an interface of this network namespace is the one with that folder, whose number it has."""
    if link.parent is not None and link.parent.replace("/", "!") != folder.parent.parent.name:
        return False
    # One card may have an interface of that number in either namespace. Or it has been renamed between two looks.
    return link.name == folder.name or not folder.is_dir() or _name_now(link.index) == folder.name


def _name_now(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def network_refusals(device: HostDevice, snapshot: MachineSnapshot, found: dict[int, Interface]) -> Iterator[Refusal]:
    """Routes, addresses, sockets, membership in bonds and bridges, and what is not to be seen from here.

    Args:
        device: The device.
        snapshot: At the machine.
        found: What `interfaces` has found of the device.
    """
    for interface in found.values():
        yield from _memberships(device, interface, snapshot)
    for interface in found.values():
        if interface.link is not None:
            yield from _traffic(device, interface, interface.link)
    if found:
        yield from _sockets(device, snapshot, found)
        yield from _messages(device, snapshot, found)
        yield from _hidden_layers(device, snapshot, found)
        yield from _unseen(device, found)
    if is_elsewhere(snapshot.folders(device)):
        reason = "its network interface is in another network namespace"
        if "network" in foreign_namespaces() or not _shows_this_namespace(snapshot):
            yield Refusal(device.name, "unseen", f"{reason} than this /sys shows, and not seen: look on the host")
        else:
            yield Refusal(device.name, "held", f"{reason}, as a container's is")


def _shows_this_namespace(snapshot: MachineSnapshot) -> bool:
    """Whether /sys shows the interfaces of this process's network namespace, and not of that it was mounted in."""
    shown = {path.name for path in (sysfs.SYS / "class/net").iterdir() if path.is_dir()}
    return shown == {link.name for link in snapshot.links.values()}


def _unseen(device: HostDevice, found: dict[int, Interface]) -> Iterator[Refusal]:
    names = [str(one) for one in found.values() if one.link is None and one.name == one.lowest and one.folder.is_dir()]
    if names:
        reason = (
            f"what {join_words(names)} does cannot be seen from here: its network namespace is not that of this "
            f"process; look {_from_the_host()}"
        )
        yield Refusal(device.name, "unseen", reason)


def _from_the_host() -> str:
    """From where init's interfaces are seen, for a sentence."""
    way = ", or by nsenter --net=/proc/1/ns/net pyiommufd …" if sees_all_processes() else ""
    return f"on the host{way}"


def _memberships(device: HostDevice, interface: Interface, snapshot: MachineSnapshot) -> Iterator[Refusal]:
    master = sysfs.link_name(interface.folder / "master")
    if master is None:
        return
    index = sysfs.read(interface.folder / "master/ifindex")
    link = snapshot.links.get(int(index or 0)) if interface.link is not None else None
    kind = _MASTERS.get(link.kind) if link is not None else None
    for word in ("bond", "bridge"):
        if (interface.folder / "master" / ("bonding" if word == "bond" else word)).is_dir():
            kind = word
    if kind is not None:
        yield Refusal(device.name, kind, f"its interface {interface} is in the {kind} {printable(master)}")


def _traffic(device: HostDevice, interface: Interface, link: Link) -> Iterator[Refusal]:
    """What is set up for an interface."""
    for version in sorted(link.default_routes):
        which = "the default route" if version == 4 else "the IPv6 default route"
        yield Refusal(device.name, "default-route", f"{which} leaves by {interface}")
    if link.routes:
        which, verb = ("routes", "leave") if len(link.routes) > 1 else ("a route", "leaves")
        yield Refusal(device.name, "route", f"{which} {verb} by {interface}: {join_words(list(link.routes))}")
    if link.is_up and link.addresses:
        plural = "es" if len(link.addresses) > 1 else ""
        reason = f"{interface} is up, with the address{plural} {join_words(link.addresses)}"
        yield Refusal(device.name, "address", reason)
    if link.is_up and link.hardware in _WITHOUT_ADDRESS:
        yield Refusal(device.name, "held", f"{interface} is up, as {_WITHOUT_ADDRESS[link.hardware]} interface")
    if link.has_xdp:
        yield Refusal(device.name, "held", f"an XDP program is attached to {interface}")


def _sockets(device: HostDevice, snapshot: MachineSnapshot, found: dict[int, Interface]) -> Iterator[Refusal]:
    """Sockets that are bound to an interface, and not to an address."""
    sockets = snapshot.packet_sockets
    for index, interface in found.items():
        for what, bound in (("a packet socket", sockets.packet), ("an AF_XDP socket", sockets.xdp)):
            inodes = bound.get(index) if interface.link is not None else None
            if inodes:
                processes = snapshot.processes
                pids = {processes.sockets[inode] for inode in inodes if inode in processes.sockets}
                by = f", of {join_words(sorted(map(processes.words, pids)))}" if pids else ""
                yield Refusal(device.name, "held", f"{what} is bound to {interface}{by}")
    up = _up(found)
    if sockets.unlisted and up:
        reason = (
            f"whether an AF_XDP socket is bound to {join_words(up)} cannot be seen: the kernel does not list "
            f"{sockets.unlisted} of them, for want of CONFIG_XDP_SOCKETS_DIAG, or since the interface of one is gone"
        )
        yield Refusal(device.name, "unseen", reason)


def _messages(device: HostDevice, snapshot: MachineSnapshot, found: dict[int, Interface]) -> Iterator[Refusal]:
    """The kernel's own messages, which go by an interface without a socket."""
    seen = {interface.name: interface for interface in found.values() if interface.link is not None}
    unknown = snapshot.netconsole.unseen
    for name in snapshot.netconsole.interfaces:
        if name in seen:
            yield Refusal(device.name, "held", f"netconsole sends the kernel's messages by {seen[name]}")
        elif all(link.name != name for link in snapshot.links.values()):
            unknown = unknown or f"no interface here has the name {printable(name)}, which it was given"
    up = _up(found)
    if unknown and up:
        reason = f"whether netconsole sends the kernel's messages by {join_words(up)} cannot be seen: {unknown}"
        yield Refusal(device.name, "unseen", reason)


def _up(found: dict[int, Interface]) -> list[str]:
    """The interfaces that may have traffic at all."""
    return [str(interface) for interface in found.values() if interface.link is not None and interface.link.is_up]


def _hidden_layers(device: HostDevice, snapshot: MachineSnapshot, found: dict[int, Interface]) -> Iterator[Refusal]:
    """What stands on an interface without a sign of it there."""
    names = {interface.name: interface for interface in found.values() if interface.link is not None}
    for line in sysfs.lines(sysfs.PROC / "net/pppoe")[1:]:
        # Id, the other side's address, the interface (Linux 7.3, drivers/net/ppp/pppoe.c). No name has a blank.
        under = names.get(line.rpartition(" ")[2])
        if under is not None:
            yield Refusal(device.name, "held", f"a PPPoE session goes by {under}")
    for link in snapshot.foreign_links.found if names else ():
        under = found.get(link.below)
        if under is not None and under.link is not None:
            reason = f"{printable(link.name)}, in another network namespace, stands above {under}"
            yield Refusal(device.name, "held", reason)
    up = _up(found)
    if up and snapshot.foreign_links.unseen:
        whose = printable(join_words(snapshot.foreign_links.unseen))
        reason = (
            f"whether an interface of another network namespace stands above {join_words(up)} cannot be seen: {whose}"
        )
        yield Refusal(device.name, "unseen", f"{reason}; look on the host, as root")


def is_elsewhere(folders: Iterable[Path]) -> bool:
    """Whether one of these folders has a network interface that this network namespace does not show.

    The folder of a device's interfaces is there for as long as it has one; in it each namespace sees its own, and its
    number of links counts them all (Linux 7.3, fs/kernfs/inode.c:179).
    """
    return any(folder.name == "net" and _hides_some(folder) for folder in folders)


def _hides_some(folder: Path) -> bool:
    try:
        shown = len(os.listdir(folder))  # noqa: PTH208 (hot)
        return not shown or folder.stat().st_nlink - 2 > shown
    except OSError:
        return False
