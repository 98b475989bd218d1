"""Command lines of virtual machine monitors, with the devices in them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import PurePath

from ..host.devices import HostDevice
from . import cloud_hypervisor, qemu
from .handover import VARIABLE


class Kind(StrEnum):
    """Which arguments a program takes."""

    QEMU = "qemu"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    OTHER = "other"
    """It finds its fds in the environment, or where ``{iommufd}`` and ``{device0}``, ``{device1}`` … are arguments."""


def kind_of(program: str) -> Kind:
    """The kind that a program is by its name.

    Args:
        program: Its name or path.
    """
    name = PurePath(program).name
    if name.startswith("qemu-system-") or name in ("qemu-kvm", "kvm", "qemu"):
        return Kind.QEMU
    return Kind.CLOUD_HYPERVISOR if name.startswith("cloud-hypervisor") else Kind.OTHER


def command_line(
    command: Sequence[str],
    fds: Sequence[int],
    *,
    kind: Kind | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """A command line with the devices added.

    Args:
        command: The program and the arguments that it is given.
        fds: The fds as it will have them, the iommufd's first, as in `Handover.fds`.
        kind: Which arguments it takes; None: by its name.
        options: More for each device, as ``key=value`` of the monitor's own.

    Raises:
        ValueError: The arguments given stand in the way, or a monitor seems to be wrapped by another program and no
            ``kind`` was given; the message says which and why.
    """
    if not command or len(fds) < 2:
        raise ValueError("a command line takes a program, an iommufd and a device")
    if kind is None:
        kind = kind_of(command[0])
        if kind is Kind.OTHER:
            _check_wrapper(command)
    if kind is Kind.QEMU:
        return qemu.command_line(command, fds[0], fds[1:], options)
    if kind is Kind.CLOUD_HYPERVISOR:
        return cloud_hypervisor.command_line(command, fds[0], fds[1:], options)
    if options:
        raise ValueError(f"{command[0]} is no monitor whose device options are known: put them into its arguments")
    places = {"{iommufd}": fds[0], **{f"{{device{number}}}": fd for number, fd in enumerate(fds[1:])}}
    result = []
    for argument in command:
        for place, fd in places.items():
            argument = argument.replace(place, str(fd))
        result.append(argument)
    return result


def _check_wrapper(command: Sequence[str]) -> None:
    """Refuse what would start a monitor without its devices: ``taskset -c 2 qemu-system-x86_64 …``, say."""
    if any(place in argument for argument in command for place in ("{iommufd}", "{device")):
        return
    for argument in command[1:]:
        words = argument.split()
        known = kind_of(words[0]) if words else Kind.OTHER
        if known is not Kind.OTHER:
            raise ValueError(
                f"{command[0]} is no monitor that is known by its name, so that {words[0]} would get no devices: "
                f"say that it starts one, and takes further arguments for it, with --vmm {known}; or, for a program "
                f"that finds its fds itself, --vmm {Kind.OTHER}"
            )


def shell_line(
    command: Sequence[str],
    devices: Sequence[HostDevice],
    *,
    kind: Kind | None = None,
    options: Sequence[str] = (),
) -> str:
    """The line for a shell that starts a monitor by hand, once the devices are on their vfio drivers.

    The shell opens the nodes, by redirections; it is for a user who may.

    Args:
        command: As `command_line`.
        devices: The devices.
        kind: As `command_line`.
        options: As `command_line`.

    Raises:
        ValueError: As `command_line`.
    """
    fds = range(3, 4 + len(devices))
    line = shlex.join(command_line(command, fds, kind=kind, options=options))
    if (kind_of(command[0]) if kind is None else kind) is Kind.OTHER:
        line = f"{VARIABLE}={shlex.quote(' '.join(map(str, fds)))} {line}"
    # The node's number is the kernel's choice, and known once the device is on its driver.
    folders = (f"/sys/bus/{device.subsystem}/devices/{device.name}/vfio-dev" for device in devices)
    nodes = ["/dev/iommu", *(f'"/dev/vfio/devices/$(ls {shlex.quote(folder)})"' for folder in folders)]
    return " ".join([line, *(f"{fd}<>{node}" for fd, node in zip(fds, nodes, strict=True))])
