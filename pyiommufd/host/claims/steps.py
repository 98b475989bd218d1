"""The single changes to the machine that a claim, or its release, is made of."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pyiommufd.printable import OneLine

if TYPE_CHECKING:
    from pyiommufd.host.claims.record import DeviceState
    from pyiommufd.host.discovery.devices import HostDevice


class Action(StrEnum):
    """What a step does: to a device, or to a file."""

    LOAD_DRIVER = "load-driver"
    """modprobe; what has been loaded stays, as others may use it by the time of the release."""
    SET_OVERRIDE = "set-override"
    CLEAR_OVERRIDE = "clear-override"
    UNBIND = "unbind"
    BIND = "bind"
    PROBE = "probe"
    """Have the host's drivers take a device that is on none: what announces it is loaded, then ``drivers_probe``."""
    SET_VFS = "set-vfs"
    """``sriov_numvfs``: 0 takes all virtual functions away."""
    SET_AUTOPROBE = "set-autoprobe"
    """``sriov_drivers_autoprobe``: whether new virtual functions go to their drivers by themselves."""
    SET_POWER = "set-power"
    """``power/control``: whether the device may sleep while nobody uses it."""
    GRANT = "grant"
    """An entry for a user in the access control list of a node."""
    REVOKE = "revoke"
    WRITE = "write"
    REMOVE = "remove"
    ENABLE = "enable"
    """Write a systemd unit, and have it run at boot."""
    DISABLE = "disable"


FILE_ACTIONS = frozenset({Action.GRANT, Action.REVOKE, Action.WRITE, Action.REMOVE, Action.ENABLE, Action.DISABLE})
"""What is done to a file, or to a node."""

_WORDS = {
    Action.LOAD_DRIVER: "load the driver {}",
    Action.SET_OVERRIDE: "set driver_override to {}",
    Action.CLEAR_OVERRIDE: "clear driver_override",
    Action.UNBIND: "unbind from {}",
    Action.BIND: "bind to {}",
    Action.PROBE: "let its host driver take it: {}",
    Action.SET_VFS: "set sriov_numvfs to {}",
    Action.SET_AUTOPROBE: "set sriov_drivers_autoprobe to {}",
    Action.SET_POWER: "set power/control to {}",
    Action.GRANT: "let {} open it",
    Action.REVOKE: "no longer let {} open it",
    Action.WRITE: "write",
    Action.REMOVE: "remove",
    Action.ENABLE: "write and enable",
    Action.DISABLE: "disable and remove",
}


@dataclass(frozen=True, slots=True, repr=False)
class Step(OneLine):
    """One change to the machine. Equal where target, action and value are.

    Attributes:
        target: The name of the device, also where its node is given to a user; else the path of the file.
        action: What is done to it.
        value: The driver that is loaded, left or joined, the override, the number of virtual functions, or the user
            who is given a node; the drivers that may take a device that is probed, as far as they are known; None
            where the action says all.
        sys_path: The device's folder; empty for a file.
        subsystem: The device's bus.
        text: What is written to a file.
    """

    target: str
    action: Action
    value: str | None = None
    sys_path: str = field(default="", compare=False)
    subsystem: str = field(default="pci", compare=False)
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.target}: {_WORDS[self.action].format(self.value or 'the one that the kernel chooses')}"

    @property
    def command(self) -> str:
        """The line of a shell that does the same to a device; a comment for what is done to a file."""
        value = shlex.quote(self.value or "")
        name = shlex.quote(self.target)
        device = f"/sys/bus/{self.subsystem}/devices/{name}"
        driver = f"/sys/bus/{self.subsystem}/drivers/{value}"
        match self.action:
            case Action.LOAD_DRIVER:
                return f"modprobe {value}"
            case Action.SET_OVERRIDE:
                return f"echo {value} > {device}/driver_override"
            case Action.CLEAR_OVERRIDE:
                return f"echo > {device}/driver_override"
            case Action.UNBIND:
                return f"echo {name} > {driver}/unbind"
            case Action.BIND:
                return f"echo {name} > {driver}/bind"
            case Action.PROBE:
                bus = f"/sys/bus/{self.subsystem}"
                return f'modprobe "$(cat {device}/modalias)"; echo {name} > {bus}/drivers_probe'
            case Action.SET_VFS:
                return f"echo {value} > {device}/sriov_numvfs"
            case Action.SET_AUTOPROBE:
                return f"echo {value} > {device}/sriov_drivers_autoprobe"
            case Action.SET_POWER:
                return f"echo {value} > {device}/power/control"
        return f"# {self}"

    @property
    def folder(self) -> Path:
        """The device's folder."""
        return Path(self.sys_path)


def device_step(device: HostDevice | DeviceState, action: Action, value: str | None = None) -> Step:
    """What is done to a device."""
    return Step(device.name, action, value, str(device.sys_path), device.subsystem)


Report = Callable[[Step], None]
"""Told of each step before it is taken."""
