"""QEMU's arguments for devices that it gets as fds (QEMU 9 and newer; its docs/devel/vfio-iommufd.rst)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from pyiommufd.errors import CommandLineError, Fix

# With these options QEMU would outlive the process that started it: it daemonizes, or it changes its user, which
# clears PR_SET_PDEATHSIG.
_DAEMONIZES = "QEMU would continue in another process, which ends when the devices are given back"
_CHANGES_USER = "QEMU would outlive the process that started it"
_LEAVE_OUT = Fix("leave this out", "leave this out")
_AS_USER = Fix("leave this out, and give VMM(user=)", "leave this out, and use --user")
_REFUSED = {"daemonize": (_DAEMONIZES, _LEAVE_OUT), "runas": (_CHANGES_USER, _AS_USER)}


def command_line(
    command: Sequence[str], iommufd: int, devices: Sequence[int], options: Sequence[Sequence[str]]
) -> list[str]:
    """QEMU's command line with the devices added: see `pyiommufd.vmm.commands.command_line`.

    Args:
        command: QEMU and the arguments that it is given.
        iommufd: The iommufd's fd.
        devices: The fds of the devices.
        options: More for each of the ``vfio-pci`` devices, such as ``bus=rp1``.

    Raises:
        CommandLineError: An argument stands in the way.
    """
    _check(command[1:])
    taken = set(re.findall(r"\bid=([\w.-]+)", " ".join(command))) | set(
        re.findall(r"[\"']id[\"']\s*:\s*[\"']([\w.-]+)[\"']", " ".join(command))
    )
    backend = next(name for name in _names("iommufd") if name not in taken)
    result = [*command, "-object", f"iommufd,id={backend},fd={iommufd}"]
    names = (name for name in _names("vfio") if name not in taken)
    for fd, name, more in zip(devices, names, options, strict=False):
        # Always with an id: QEMU 11.1 crashes without.
        result += ["-device", ",".join(["vfio-pci", f"id={name}", f"fd={fd}", f"iommufd={backend}", *more])]
    return result


def _names(stem: str) -> itertools.chain[str] | map[str]:
    return map(f"{stem}{{}}".format, itertools.count())


def _check(arguments: Sequence[str]) -> None:
    for number, argument in enumerate(arguments):
        option = argument.lstrip("-") if argument.startswith("-") else ""
        value = arguments[number + 1] if number + 1 < len(arguments) else ""
        if option in _REFUSED:
            why, fix = _REFUSED[option]
            raise CommandLineError(f"{argument}: {why}", fix)
        if option == "run-with" and re.search(r"(^|,)user=", value):
            raise CommandLineError(f"{argument} {value}: {_CHANGES_USER}", _AS_USER)
