"""How devices stand to being claimed: what a glance at a list of them is for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum

from . import sysfs, uses
from .devices import HostDevice


class Standing(StrEnum):
    """How a device stands to being claimed."""

    VFIO = "vfio"
    """A vfio driver has it."""
    CLAIMABLE = "claimable"
    """A claim would take it, with its group; nothing speaks against that."""
    IN_USE = "in-use"
    """The host uses it, or a member of its group: a claim is refused unless the use is named to ``force``."""
    BRIDGE = "bridge"
    """A bridge, which vfio-pci does not take."""
    NO_GROUP = "no-group"
    """No IOMMU covers it."""
    NO_DRIVER = "no-vfio-driver"
    """No vfio driver takes over devices of its bus: an mdev is made for vfio, or not."""


_WITH_DRIVERS = frozenset({"pci", "platform", "amba", "fsl-mc"})
_USED_BY = ("block", "net", "nvme")


def standings(devices: Iterable[HostDevice]) -> dict[HostDevice, Standing]:
    """How each of these devices stands to being claimed.

    Args:
        devices: Whole groups, as `list_devices` returns them: what the host does with one concerns its group.
    """
    devices = list(devices)
    used = _used(devices)
    groups = {device.group_id for device in used if device.group_id is not None}
    return {device: _standing(device, device in used or device.group_id in groups) for device in devices}


def _standing(device: HostDevice, used: bool) -> Standing:
    if device.on_vfio:
        return Standing.VFIO
    if device.is_bridge:
        return Standing.BRIDGE
    if device.group_id is None:
        return Standing.NO_GROUP
    if used:
        return Standing.IN_USE
    return Standing.CLAIMABLE if device.subsystem in _WITH_DRIVERS else Standing.NO_DRIVER


def _used(devices: list[HostDevice]) -> set[HostDevice]:
    """Those that the host uses."""
    by_path = {str(device.sys_path): device for device in devices}
    # The full look goes through all below a device. Only what has a disk or an interface can be in use that way, and
    # most of a large machine's functions have neither.
    suspects = set()
    for kind in _USED_BY:
        folder = sysfs.SYS / "class" / kind
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            path = os.path.realpath(folder / name)
            while (path := path.rpartition("/")[0]) and path not in by_path:
                pass
            if path:
                suspects.add(by_path[path])
    return {device for device in suspects if uses.refusals(device)}
