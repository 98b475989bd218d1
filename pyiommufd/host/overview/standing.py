"""How devices stand to being claimed: what a glance at a list of them is for."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pyiommufd.host import uses
from pyiommufd.host.checks import bindable
from pyiommufd.host.claims.members import parents_among
from pyiommufd.host.discovery.devices import HostDevice


class Standing(StrEnum):
    """How a device stands to being claimed."""

    VFIO = "vfio"
    """A vfio driver has it."""
    VFIO_NOIOMMU = "vfio-noiommu"
    """A vfio driver has it, and no IOMMU covers it: its DMA reaches all memory."""
    CLAIMABLE = "claimable"
    """The quick look found nothing against a claim of it and its group; `plan_claim` looks more closely."""
    IN_USE = "in-use"
    """The host uses it, or a member of its group: a claim is refused unless the use is named to ``force``."""
    UNSEEN = "unseen"
    """This process cannot see whether the host uses it, not being root, or being in a container: a claim is refused
    unless forced."""
    UNBINDABLE = "unbindable"
    """Every bind would be refused, as interrupts are not isolated, say, or firmware keeps memory mapped: a claim is,
    unless forced."""
    WITH_PARENT = "with-parent"
    """The driver of a device above it, of its group, has made it, as VMD's does a drive: it goes away when that one is
    claimed. Claim that one."""
    BRIDGE = "bridge"
    """A bridge to another bus, which vfio-pci does not take."""
    NO_GROUP = "no-group"
    """No IOMMU covers it; on a host driver, or on none."""
    NO_DRIVER = "no-vfio-driver"
    """No vfio driver takes over devices of its bus: an mdev is made for vfio, or not."""


REFUSED = frozenset({Standing.IN_USE, Standing.UNSEEN, Standing.UNBINDABLE})
"""Those whose claim is refused unless it is forced. So is that of a `NO_GROUP`, as ``noiommu``."""

_WITH_DRIVERS = frozenset({"pci", "platform", "amba", "fsl-mc"})


def standings(devices: Iterable[HostDevice]) -> dict[HostDevice, Standing]:
    """How each of these devices stands to being claimed.

    Args:
        devices: Whole groups, as `list_devices` returns them: what the host does with one concerns its group.
    """
    devices = list(devices)
    groups: dict[int, list[HostDevice]] = {}
    for device in devices:
        if device.group_id is not None:
            groups.setdefault(device.group_id, []).append(device)
    reasons: dict[int | None, set[str]] = {group: set() for group in groups}
    for device, kinds in uses.in_use(devices).items():
        reasons.get(device.group_id, set()).update(kinds)
    nowhere = any(bindable.machine_obstacles())
    unbindable = {group for group in groups if nowhere or bindable.firmware_regions(group)}
    goes = {device for members in groups.values() if len(members) > 1 for device in parents_among(members)}
    return {
        device: _standing(device, reasons.get(device.group_id, set()), device.group_id in unbindable, device in goes)
        for device in devices
    }


def _standing(device: HostDevice, reasons: set[str], unbindable: bool, with_parent: bool) -> Standing:
    if device.on_vfio:
        return Standing.VFIO_NOIOMMU if device.without_iommu else Standing.VFIO
    if device.is_bridge:
        return Standing.BRIDGE
    if device.group_id is None:
        return Standing.NO_GROUP
    if reasons - {"unseen"}:
        return Standing.IN_USE
    if with_parent:
        return Standing.WITH_PARENT
    if device.subsystem not in _WITH_DRIVERS:
        return Standing.NO_DRIVER
    if unbindable:
        return Standing.UNBINDABLE
    return Standing.UNSEEN if reasons else Standing.CLAIMABLE
