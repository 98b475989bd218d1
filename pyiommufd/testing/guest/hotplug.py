"""Devices that come and go while a guest runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.machine import GuestDevice, Topology, check_device

if TYPE_CHECKING:
    from pyiommufd.testing.guest.monitor import Monitor

# The numbers of drives that the machine had from its start are below.
_FIRST_NUMBER = 1000
_numbers = itertools.count(_FIRST_NUMBER)


def hot_plug(monitor: Monitor, device: GuestDevice, port: str | None) -> str:
    """See `Guest.hot_plug`."""
    check_device(device)
    port = port or _empty_port(monitor)
    arguments = device.arguments(Topology(_numbers), f",bus={port}")
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    devices = [value for option, value in pairs if option == "-device"]
    if len(devices) != 1:
        raise GuestError(f"hot_plug takes a device without a bridge of its own, not {device}")
    for option, value in pairs:
        if option == "-blockdev":
            monitor.execute("blockdev-add", _typed(value))
    argument = devices[0]
    name = _properties(argument).get("id")
    if name is None:
        name = f"hot{next(_numbers)}"
        argument += f",id={name}"
    # By the human monitor: it takes the command line's own syntax, while QMP wants each property's type.
    if said := monitor.human(f"device_add {argument}").strip():
        raise GuestError(f"QEMU refuses device_add {argument}: {said}")
    return name


def unplug(monitor: Monitor, name: str, timeout: float) -> None:
    """See `Guest.unplug`."""
    # One of that name may have gone before.
    monitor.forget("DEVICE_DELETED", device=name)
    monitor.execute("device_del", {"id": name})
    if timeout > 0:
        monitor.wait_event("DEVICE_DELETED", timeout, device=name)


def _empty_port(monitor: Monitor) -> str:
    for bus in monitor.execute("query-pci", {}):
        for device in bus["devices"]:
            name = str(device.get("qdev_id", ""))
            if name.startswith("rp") and "pci_bridge" in device and not device["pci_bridge"].get("devices"):
                return name
    raise GuestError("no root port of the guest is empty: give it RootPort() among its devices")


def _properties(argument: str) -> dict[str, str]:
    """The properties of an option's value, in which a doubled comma is a comma."""
    pieces = argument.replace(",,", "\0").split(",")
    pairs = (piece.replace("\0", ",").partition("=") for piece in pieces)
    return {key: value for key, equals, value in pairs if equals}


def _typed(argument: str) -> dict[str, Any]:
    words: dict[str, Any] = {"on": True, "off": False}
    return {
        key: int(value) if value.isdigit() else words.get(value, value) for key, value in _properties(argument).items()
    }
