"""Once nothing uses this machine's devices, each is claimed, moves data where it can, and is at work again."""

from __future__ import annotations

from pyiommufd import HostDevice, list_devices
from pyiommufd.host.overview.standing import Standing, standings
from tests.guest.idle import take_each_idle_device


def test_each_idle_device(
    shared_disk: HostDevice, edu_beside_disk: HostDevice, disk: HostDevice, system_disk: HostDevice
) -> None:
    claimed, moved = take_each_idle_device()
    cards = [device.name for device in list_devices("pci") if device.driver == "e1000e"]
    assert len(cards) == 2
    assert {shared_disk.name, edu_beside_disk.name, disk.name, system_disk.name, *cards} <= set(moved)
    # What is left is in use, as the display is, a bridge, or behind one with no group of its own.
    left = {one for device, one in standings(list_devices("pci")).items() if device.name not in claimed}
    assert left <= {Standing.IN_USE, Standing.BRIDGE}
