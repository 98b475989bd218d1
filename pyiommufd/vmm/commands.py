"""Command lines of virtual machine monitors, with the devices in them."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import PurePath

from pyiommufd.errors import CommandLineError, Fix
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.vf_token import as_token
from pyiommufd.host.users import User
from pyiommufd.vmm import cloud_hypervisor, qemu
from pyiommufd.vmm.handover import VARIABLE
from pyiommufd.vmm.vf_token import TOKEN_VARIABLE, token_fds

_OURS = frozenset({"fd", "host", "id", "iommufd", "path", "sysfsdev", "vf-token"})
"""Options of a device that say which one it is, or that are set by other means."""


class Kind(StrEnum):
    """Which arguments a program takes."""

    QEMU = "qemu"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    OTHER = "other"
    """It finds its fds in the environment, or where ``{iommufd}`` and ``{device0}``, ``{device1}`` … are arguments; so
    with a VF token: ``{vf-token}``."""


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
    vf_token: uuid.UUID | str | None = None,
    vf_token_fds: Collection[int] | None = None,
) -> list[str]:
    """A command line with the devices added.

    Args:
        command: The program and the arguments that it is given.
        fds: The fds as it will have them, the iommufd's first, as in `Handover.fds`.
        kind: Which arguments it takes; None: by its name.
        options: More for each device, as ``key=value`` of the monitor's own.
        vf_token: The VF token, one for all devices that take one. QEMU's vfio-pci has an option for it since 8.1; as
            of 11.1 QEMU does not hand it on to an iommufd, and the kernel then refuses it the device.
        vf_token_fds: Those of the fds whose devices take it (`pyiommufd.vmm.vf_token.token_fds`); None: all do.

    Raises:
        ValueError: The arguments given stand in the way, or a monitor seems to be wrapped by another program and no
            ``kind`` was given, or takes no VF token; the message says which and why. Or the token is no UUID.
        TypeError: The token is neither a UUID nor a string.
    """
    token = None if vf_token is None else as_token(vf_token)
    if not command or len(fds) < 2:
        raise ValueError("a command line takes a program, an iommufd and a device")
    if kind is None:
        kind = kind_of(command[0])
        if kind is Kind.OTHER:
            _check_wrapper(command)
    for option in options:
        _check_option(option)
    if kind is Kind.QEMU:
        takers = () if token is None else fds if vf_token_fds is None else vf_token_fds
        more = [[*options, *([f"vf-token={token}"] if fd in takers else ())] for fd in fds[1:]]
        return qemu.command_line(command, fds[0], fds[1:], more)
    if kind is Kind.CLOUD_HYPERVISOR:
        if token is not None:
            raise ValueError("Cloud Hypervisor has no option for a VF token: its --device takes none")
        return cloud_hypervisor.command_line(command, fds[0], fds[1:], options)
    if options:
        raise ValueError(f"{command[0]} is not a monitor whose device options are known: put them into its arguments")
    places = {"{iommufd}": str(fds[0]), **{f"{{device{number}}}": str(fd) for number, fd in enumerate(fds[1:])}}
    if token is not None:
        places["{vf-token}"] = str(token)
    result = []
    for argument in command:
        for place, text in places.items():
            argument = argument.replace(place, text)
        result.append(argument)
    return result


def _check_option(option: str) -> None:
    """Refuse what the monitor would only refuse once it has the devices, or what would name others."""
    if not re.match(r"[^=,]+=", option):
        raise ValueError(f"{option!r} is not an option of a device: KEY=VALUE")
    # A comma in a value is two.
    for key in re.findall(r"(?:^|(?<!,),)([^=,]+)=", option):
        if key in _OURS:
            if key == "vf-token":
                raise CommandLineError("vf-token= as an option of a device", Fix("give vf_token=", "give --vf-token"))
            raise ValueError(f"the option {key}= of a device: which device it is comes with the fds; leave it out")


def has_places(command: Sequence[str]) -> bool:
    """Whether ``{iommufd}`` or ``{device0}`` and so on say where in a command line the numbers of the fds go."""
    return any(place in argument for argument in command for place in ("{iommufd}", "{device"))


def _check_wrapper(command: Sequence[str]) -> None:
    """Refuse what would start a monitor without its devices: ``taskset -c 2 qemu-system-x86_64 …``, say."""
    if has_places(command):
        return
    for argument in command[1:]:
        words = argument.split()
        known = kind_of(words[0]) if words else Kind.OTHER
        if known is not Kind.OTHER:
            what = "if it starts one, and takes further arguments for it: {}; if it finds its fds itself: {}"
            raise CommandLineError(
                f"{command[0]} is not a monitor that is known by its name, so that {words[0]} would get no devices",
                Fix(
                    what.format(f"kind=Kind.{known.name}", f"kind=Kind.{Kind.OTHER.name}"),
                    what.format(f"--vmm {known}", f"--vmm {Kind.OTHER}"),
                ),
            )


def shell_line(
    command: Sequence[str],
    devices: Sequence[HostDevice],
    *,
    kind: Kind | None = None,
    options: Sequence[str] = (),
    vf_token: uuid.UUID | str | None = None,
    user: User | None = None,
    memlock: int | None = None,
) -> str:
    """The line for a shell that starts a monitor by hand, once the devices are on their vfio drivers.

    The shell opens the nodes, by redirections; it is for somebody who may: with ``user``, for root.

    Args:
        command: As `command_line`.
        devices: The devices.
        kind: As `command_line`.
        options: As `command_line`.
        vf_token: As `command_line`, for those of the devices that take one.
        user: Whom the monitor runs as, as for `VMM`; by setpriv(1).
        memlock: How much memory it may lock, as for `VMM`; by prlimit(1).

    Raises:
        ValueError, TypeError: As `command_line`.
    """
    fds = range(3, 4 + len(devices))
    takers = token_fds(fds, devices)
    variables: dict[str, str] = {}
    before: list[str] = []
    if memlock is not None:
        before.append(f"prlimit --memlock={'unlimited' if memlock < 0 else memlock}")
    if user is not None:
        variables = {"HOME": user.home or "/", "USER": user.name, "LOGNAME": user.name}
        before.append(
            f"setpriv --reuid={user.uid} --regid={user.gid} --groups={','.join(map(str, user.groups)) or user.gid} "
            "--inh-caps=-all --bounding-set=-all --no-new-privs"
        )
    line = shlex.join(command_line(command, fds, kind=kind, options=options, vf_token=vf_token, vf_token_fds=takers))
    if (kind_of(command[0]) if kind is None else kind) is Kind.OTHER:
        variables[VARIABLE] = " ".join(map(str, fds))
        if vf_token is not None:
            variables[TOKEN_VARIABLE] = str(as_token(vf_token))
    # The node's number is the kernel's choice, and known once the device is on its driver.
    folders = (f"/sys/bus/{device.subsystem}/devices/{device.name}/vfio-dev" for device in devices)
    nodes = ["/dev/iommu", *(f'"/dev/vfio/devices/$(ls {shlex.quote(folder)})"' for folder in folders)]
    given = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*given, *before, line, *(f"{fd}<>{node}" for fd, node in zip(fds, nodes, strict=True))])
