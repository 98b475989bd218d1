"""Cloud Hypervisor's arguments for devices that it gets as fds.

As its ``--help`` documents them: ``--platform …,iommufd=on|off,iommufd_fd=<fd>`` and ``--device …,fd=<vfio_cdev_fd>,
id=<device_id>``. An option may be given once, and takes any number of values.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence


def command_line(command: Sequence[str], iommufd: int, devices: Sequence[int], options: Sequence[str]) -> list[str]:
    """Its command line with the devices added: see `pyiommufd.vmm.commands.command_line`.

    What ``--platform`` and ``--device`` say already is kept.

    Args:
        command: Cloud Hypervisor and the arguments that it is given.
        iommufd: The iommufd's fd.
        devices: The fds of the devices.
        options: More for each device, such as ``pci_segment=1``.

    Raises:
        ValueError: An argument stands in the way.
    """
    rest, platform = _without("--platform", command)
    rest, others = _without("--device", rest)
    settings = [setting for value in platform for setting in value.split(",") if setting != "iommufd=on"]
    for setting in settings:
        if setting.startswith(("iommufd=", "iommufd_fd=")):
            raise ValueError(f"--platform {setting}: the iommufd is the one that is handed over; leave it out")
    taken = set(re.findall(r"\bid=([^,\s]+)", " ".join(command)))
    names = (name for name in map("vfio{}".format, itertools.count()) if name not in taken)
    added = [",".join([f"fd={fd}", f"id={name}", *options]) for fd, name in zip(devices, names, strict=False)]
    together = ",".join([*settings, "iommufd=on", f"iommufd_fd={iommufd}"])
    return [*rest, "--platform", together, "--device", *others, *added]


def _without(option: str, command: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command without an option, and the option's values."""
    rest: list[str] = []
    values: list[str] = []
    inside = False
    for argument in command:
        if argument == option or argument.startswith(f"{option}="):
            inside = argument == option
            values += [] if inside else [argument.partition("=")[2]]
        elif inside and not argument.startswith("-"):
            values.append(argument)
        else:
            inside = False
            rest.append(argument)
    return rest, values
