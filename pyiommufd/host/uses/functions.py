"""Functions in use that go away with a device: its virtual ones, and those of what its driver has made below it."""

from __future__ import annotations

from collections.abc import Iterator

from pyiommufd.errors import Refusal
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.uses.folders import devices_below, join_words
from pyiommufd.host.uses.snapshot import MachineSnapshot


def function_refusals(device: HostDevice, snapshot: MachineSnapshot) -> Iterator[Refusal]:
    """The virtual functions that a driver has, vfio's included; of the other devices, those that vfio has."""
    below = [] if device.on_vfio else list(devices_below(device, snapshot.folders(device)))
    found = {
        function.name: function.driver
        for one in (device, *below)
        for function in one.virtual_functions
        if function.driver is not None
    }
    if found:
        yield Refusal(device.name, "vfs", f"virtual functions of it are in use: {_listed(found)}")
    given = {one.name: one.driver or "" for one in below if one.on_vfio and one.name not in found}
    if given:
        yield Refusal(device.name, "vfs", f"devices that go away with it are in use: {_listed(given)}")


def _listed(drivers: dict[str, str]) -> str:
    return join_words(sorted(f"{name} ({driver})" for name, driver in drivers.items()))
