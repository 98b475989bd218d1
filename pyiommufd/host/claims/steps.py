"""The single changes to the machine that a claim, or its release, is made of."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

_log = logging.getLogger(__name__)


class Action(StrEnum):
    """What a step does."""

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


_WORDS = {
    Action.LOAD_DRIVER: "load the driver {}",
    Action.SET_OVERRIDE: "set driver_override to {}",
    Action.CLEAR_OVERRIDE: "clear driver_override",
    Action.UNBIND: "unbind from {}",
    Action.BIND: "bind to {}",
    Action.PROBE: "let its host driver take it: {}",
    Action.SET_VFS: "set sriov_numvfs to {}",
    Action.SET_AUTOPROBE: "set sriov_drivers_autoprobe to {}",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One change to the machine. Equal where device, action and value are.

    Attributes:
        device: The name of the device.
        action: What is done to it.
        value: The driver that is loaded, left or joined, the override, or the number of virtual functions; the drivers
            that may take a device that is probed, as far as they are known; None where the action says all.
        sys_path: The device's folder.
        subsystem: The device's bus.
    """

    device: str
    action: Action
    value: str | None = None
    sys_path: str = field(default="", compare=False, repr=False)
    subsystem: str = field(default="pci", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.device}: {_WORDS[self.action].format(self.value or 'which one, the kernel decides')}"

    @property
    def command(self) -> str:
        """The line of a shell that does the same."""
        value = shlex.quote(self.value or "")
        name = shlex.quote(self.device)
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

    @property
    def folder(self) -> Path:
        """The device's folder."""
        return Path(self.sys_path)


def cross(what: str, change: Callable[[], None]) -> None:
    """Make a change: the one place that every change to the machine, and every write of its record, goes through.

    They come one after the other, each written to the disk, or taken by the kernel, when this returns. A process that
    is killed has made all the changes before some call of this function and none after.
    """
    _log.debug("%s", what)
    change()
