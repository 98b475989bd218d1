"""IOMMU groups: the sets of devices that the IOMMU cannot tell apart, or not isolate from each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyiommufd.host import sysfs
from pyiommufd.printable import OneLine, counted, listed

if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice

# Drivers that do no DMA of their own: a member on one of them does not stop the group from being bound
# (`driver_managed_dma` in Linux 7.3). pci-pf-stub and shpchp look alike and are not among them.
SAFE_DRIVERS = frozenset({"pcieport", "pci-stub"})


@dataclass(frozen=True, slots=True, repr=False)
class ReservedRegion(OneLine):
    """I/O virtual addresses that a group's devices cannot use for mappings.

    Attributes:
        start: The first address.
        last: The last address, inclusive.
        type: ``direct`` (firmware needs it mapped one to one), ``direct-relaxable``, ``msi`` or ``reserved``.
    """

    start: int
    last: int
    type: str

    def __str__(self) -> str:
        return f"{self.start:#x}..{self.last:#x} {self.type}"


@dataclass(frozen=True, slots=True, repr=False)
class Group(OneLine):
    """An IOMMU group as it was when it was looked up. Two snapshots of one group are equal.

    Attributes:
        id: The number under ``/sys/kernel/iommu_groups``.
        type: The group's default domain: ``DMA``, ``DMA-FQ``, ``identity``, ``blocked`` or ``unknown``.
        devices: Every member, bridges included, ordered by name.
        reserved_regions: What the members' addresses must avoid.
        is_made_by_vfio: Whether VFIO has made it, for a device that no IOMMU covers, or for a mediated one.
    """

    id: int
    type: str = field(compare=False)
    devices: tuple[HostDevice, ...] = field(compare=False)
    reserved_regions: tuple[ReservedRegion, ...] = field(compare=False)
    is_made_by_vfio: bool = field(default=False, compare=False)

    @property
    def blockers(self) -> tuple[HostDevice, ...]:
        """The members that are on a host driver: none of the group can be bound until they have left it."""
        return tuple(device for device in self.devices if not is_safe(device))

    @property
    def viable(self) -> bool:
        """Whether no member is on a host driver.

        A viable group is not yet one that can be bound: another iommufd may own it.
        """
        return not self.blockers

    def _line(self) -> str:
        blockers = [f"{device.name} on {device.driver}" for device in self.blockers]
        standing = f"not viable: {listed(blockers)}" if blockers else "viable"
        return f"{self.id}: {counted(len(self.devices), 'device')}, {standing}"


def is_safe(device: HostDevice) -> bool:
    """Whether a group with this member can be bound to an iommufd, as far as this member goes."""
    return device.driver is None or device.driver in SAFE_DRIVERS or device.on_vfio


def groups_folder() -> Path:
    """The folder in sysfs that has one folder a group."""
    return sysfs.SYS / "kernel/iommu_groups"


def is_made_by_vfio(group_id: int | str) -> bool:
    """Whether VFIO has made a group, for a device that no IOMMU covers, or for a mediated one: no sign of an IOMMU.

    As long as a vfio driver has the device (Linux 7.3, drivers/vfio/group.c, vfio_noiommu_group_alloc).
    """
    return sysfs.read(f"{groups_folder()}/{group_id}/name") == "vfio-noiommu"


def iommu_has_groups() -> bool:
    """Whether an IOMMU is in use here: there is a group that VFIO has not made."""
    folder = groups_folder()
    return folder.is_dir() and any(not is_made_by_vfio(path.name) for path in folder.iterdir())


def reserved_regions(group_id: int, kind: str = "") -> tuple[ReservedRegion, ...]:
    """What the addresses of a group's members must avoid; nothing where there is no such group.

    Args:
        group_id: The number of the group.
        kind: Only regions of this type.
    """
    found = []
    for line in sysfs.lines(str(groups_folder() / str(group_id) / "reserved_regions")):
        if line.endswith(kind):
            start, last, kind_of_it = line.split()
            found.append(ReservedRegion(int(start, 16), int(last, 16), kind_of_it))
    return tuple(found)
