"""Arguments that several commands take."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import click

from pyiommufd.cli import candidates
from pyiommufd.errors import DeviceNotFoundError
from pyiommufd.host.discovery.devices import find_device
from pyiommufd.host.discovery.vf_token import as_token
from pyiommufd.nearest import did_you_mean
from pyiommufd.printable import printable

LISTED = "pyiommufd list shows the devices."
"""Where to find a DEVICE, for who has named none."""


class DescribedArgument(click.Argument):
    """An argument that the help says something of.

    Args:
        label: What the help calls it.
        description: What it says.
    """

    def __init__(self, param_decls: Sequence[str], *, label: str, description: str, **attributes: Any) -> None:
        super().__init__(param_decls, **{"metavar": label} | attributes)
        self.help = description  # not as an argument, which click has from 8.5 on
        self._record = label, description

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Its line in the help, which click before 8.5 has beside those of the options."""
        del ctx
        return self._record


class _Device(click.types.StringParamType):
    """The name of a device, which the command looks up."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What click says behind that it is missing."""
        del param, ctx
        return LISTED


class DeviceArgument(DescribedArgument):
    """An argument that names devices, and that the shell completes."""

    description = (
        "A PCI address (0000:02:01.0, 02:01.0), or VENDOR:DEVICE where one device alone has these; an interface "
        "(eth0); a disk or partition (nvme0n1p1); or a path under /dev or /sys (/dev/vda, /sys/class/net/eth0)."
    )

    def __init__(self, param_decls: Sequence[str], **attributes: Any) -> None:
        attributes = {"shell_complete": candidates.devices, "metavar": None, "type": _Device()} | attributes
        super().__init__(param_decls, label="DEVICE", description=self.description, **attributes)


def vf_token_value(ctx: click.Context, param: click.Parameter, value: str | None) -> uuid.UUID | None:
    """The callback of an option that takes a VF token."""
    try:
        return None if value is None else as_token(value)
    except ValueError as error:
        raise click.BadParameter(printable(str(error)), ctx, param) from None


def group_number(text: str) -> int:
    """The number of an IOMMU group that is given as such, or by a device in it.

    Raises:
        DeviceNotFoundError: There is no such device, or it is in no group.
    """
    if text.isdecimal():
        return int(text)
    device = find_device(text)
    if device.group_id is None:
        from pyiommufd.host.checks.lacks import NOT_COVERED, no_iommu

        raise DeviceNotFoundError(f"{device.name} is in no IOMMU group: {no_iommu() or NOT_COVERED}")
    return device.group_id


class Choice(click.Choice):  # type: ignore[type-arg, unused-ignore]
    """One of some names; what is none is answered with the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = did_you_mean(str(value), list(map(str, self.choices)))
            return self.fail(f"{error.message.rstrip('.')}{near}", param, ctx)


device_argument = click.argument("device", cls=DeviceArgument)
"""The device that a command is about."""
