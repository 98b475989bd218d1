"""How devices stand to being claimed: what a glance at a list of them is for."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from . import uses
from .claims.plan import parents_among
from .devices import HostDevice


class Standing(StrEnum):
    """How a device stands to being claimed."""

    VFIO = "vfio"
    """A vfio driver has it."""
    CLAIMABLE = "claimable"
    """A claim would take it, with its group; nothing speaks against that."""
    IN_USE = "in-use"
    """The host uses it, or a member of its group: a claim is refused unless the use is named to ``force``."""
    WITH_PARENT = "with-parent"
    """It goes away when a device above it, of its group, is claimed, as a drive does behind VMD: claim that one."""
    BRIDGE = "bridge"
    """A bridge to another bus, which vfio-pci does not take."""
    NO_GROUP = "no-group"
    """No IOMMU covers it."""
    NO_DRIVER = "no-vfio-driver"
    """No vfio driver takes over devices of its bus: an mdev is made for vfio, or not."""


_WITH_DRIVERS = frozenset({"pci", "platform", "amba", "fsl-mc"})


def standings(devices: Iterable[HostDevice]) -> dict[HostDevice, Standing]:
    """How each of these devices stands to being claimed.

    Args:
        devices: Whole groups, as `list_devices` returns them: what the host does with one concerns its group.
    """
    devices = list(devices)
    used = uses.in_use(devices)
    groups: dict[int, list[HostDevice]] = {}
    for device in devices:
        if device.group_id is not None:
            groups.setdefault(device.group_id, []).append(device)
    used_groups = {device.group_id for device in used if device.group_id is not None}
    goes = {device for members in groups.values() if len(members) > 1 for device in parents_among(members)}
    return {
        device: _standing(device, device in used or device.group_id in used_groups, device in goes)
        for device in devices
    }


def _standing(device: HostDevice, used: bool, with_parent: bool) -> Standing:
    if device.on_vfio:
        return Standing.VFIO
    if device.is_bridge:
        return Standing.BRIDGE
    if device.group_id is None:
        return Standing.NO_GROUP
    if used:
        return Standing.IN_USE
    if with_parent:
        return Standing.WITH_PARENT
    return Standing.CLAIMABLE if device.subsystem in _WITH_DRIVERS else Standing.NO_DRIVER
