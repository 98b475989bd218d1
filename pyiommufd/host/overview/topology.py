"""How devices hang together: the PCI tree, the IOMMU groups across it, and who holds what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyiommufd.host.checks.lacks import untranslated
from pyiommufd.host.claims.members import is_left_as_is, parents_among
from pyiommufd.host.discovery.devices import HostDevice, list_devices
from pyiommufd.host.discovery.kernel_names import KernelNames, kernel_names
from pyiommufd.host.holders import Holder, group_node, holders
from pyiommufd.host.overview.standing import REFUSED, Standing, standings
from pyiommufd.printable import OneLine, counted, listed


@dataclass(frozen=True, slots=True, repr=False)
class Node(OneLine):
    """A device in the tree.

    Attributes:
        device: The device.
        standing: How it stands to being claimed.
        holders: Who holds its node open.
        names: Of its interfaces and disks.
        children: The devices behind it: those of a bridge, or what its driver has made, such as mediated devices.
    """

    device: HostDevice
    standing: Standing
    holders: tuple[Holder, ...]
    names: KernelNames
    children: tuple[Node, ...]

    def _line(self) -> str:
        return f"{self.device.name}, {self.standing}, {len(self.children)} behind it"

    def walk(self) -> Iterator[Node]:
        """The node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True, repr=False)
class GroupBox(OneLine):
    """An IOMMU group in the tree.

    Attributes:
        id: Its number.
        devices: Its members.
        iommus: The IOMMUs that translate for them.
        holders: Who holds its legacy node open.
        takes: The members that a claim of one of them would put on another driver, or on none; as they are now. Those
            that go away with one of these are not among them.
        refused: Whether such a claim is refused, because the host uses a member or may do, or no bind would succeed.
    """

    id: int
    devices: tuple[HostDevice, ...]
    iommus: tuple[str, ...]
    holders: tuple[Holder, ...]
    takes: tuple[HostDevice, ...]
    refused: bool

    @property
    def without_iommu(self) -> str:
        """That no IOMMU translates for its device, in words; else empty."""
        return next((f"no IOMMU: {dma}" for dma in map(untranslated, self.devices) if dma), "")

    def _line(self) -> str:
        return f"{self.id}: {listed(self.devices)}{', refused' if self.refused else ''}"


@dataclass(frozen=True, slots=True, repr=False)
class Topology(OneLine):
    """The machine's devices as they were when they were looked at.

    Attributes:
        roots: What hangs off each host bridge or bus, by its name, such as ``pci0000:00``.
        groups: The groups, by number.
    """

    roots: dict[str, tuple[Node, ...]]
    groups: tuple[GroupBox, ...]

    def _line(self) -> str:
        return f"of {counted(sum(1 for _ in self.nodes()), 'device')} in {counted(len(self.groups), 'group')}"

    def nodes(self) -> Iterator[Node]:
        """Every device, once; a bridge before what is behind it."""
        for nodes in self.roots.values():
            for node in nodes:
                yield from node.walk()


def look_at_topology(devices: list[HostDevice] | None = None) -> Topology:
    """Look at how the devices hang together.

    Who holds them is complete for root only.

    Args:
        devices: The devices, as `list_devices` returns them; all of this machine when left out.
    """
    devices = list_devices() if devices is None else devices
    standing, names = standings(devices), kernel_names(devices)
    held: dict[str, list[Holder]] = {}
    for holder in holders(*devices):
        held.setdefault(holder.node, []).append(holder)
    by_path = {str(device.sys_path): device for device in devices}
    children: dict[HostDevice | None, list[HostDevice]] = {}
    tops: dict[str, list[HostDevice]] = {}
    for device in devices:
        above = device.sys_path.parent
        while str(above) not in by_path and above != above.parent:
            above = above.parent
        parent = by_path.get(str(above))
        if parent is not None:
            children.setdefault(parent, []).append(device)
        else:
            top = device.sys_path.parent.name if device.subsystem == "pci" else device.subsystem
            tops.setdefault(top, []).append(device)

    def node(device: HostDevice) -> Node:
        below = tuple(map(node, children.get(device, ())))
        return Node(device, standing[device], tuple(held.get(device.vfio_cdev or "", ())), names[device], below)

    roots = {name: tuple(map(node, found)) for name, found in sorted(tops.items())}
    return Topology(roots, tuple(_groups(devices, standing, held)))


def _groups(
    devices: list[HostDevice], standing: dict[HostDevice, Standing], held: dict[str, list[Holder]]
) -> Iterator[GroupBox]:
    members: dict[int, list[HostDevice]] = {}
    for device in devices:
        if device.group_id is not None:
            members.setdefault(device.group_id, []).append(device)
    for number, group in sorted(members.items()):
        claimable = [device for device in group if standing[device] in (Standing.CLAIMABLE, *REFUSED)]
        parents = parents_among(group)
        # Where only one can be claimed, that is the one that is named.
        moved = [device for device in group if not is_left_as_is(device, claimable == [device])]
        yield GroupBox(
            id=number,
            devices=tuple(group),
            iommus=tuple(dict.fromkeys(device.iommu for device in group if device.iommu)),
            holders=tuple(held.get(group_node(group[0]), ())),
            takes=tuple(device for device in moved if device not in parents) if claimable else (),
            refused=any(standing[device] in REFUSED for device in group),
        )
