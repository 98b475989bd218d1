"""``pyiommufd list``: the devices of this machine, and which of them can be claimed."""

from __future__ import annotations

import contextlib
import re
import shlex

import click

from pyiommufd.cli import candidates, records
from pyiommufd.cli.arguments import Choice, group_number
from pyiommufd.cli.output import (
    ReadingCommand,
    echo,
    json_option,
    print_iommu_note,
    print_json,
    print_none,
    print_table,
    print_visibility_note,
    show_progress,
)
from pyiommufd.errors import IOMMUFDError
from pyiommufd.host.checks.lacks import REACHES_ALL
from pyiommufd.host.discovery.devices import HostDevice, find_device, list_devices
from pyiommufd.host.discovery.kernel_names import kernel_names
from pyiommufd.host.discovery.lookup import SUBSYSTEMS
from pyiommufd.host.overview.standing import Standing, standings
from pyiommufd.nearest import did_you_mean
from pyiommufd.printable import printable

_IDS = re.compile(r"([0-9a-f]{4})?:([0-9a-f]{4})?")


def _checked_ids(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        if not _IDS.fullmatch(text.lower()):
            what = f"{printable(text)} is not a vendor:device, such as 8086:10fb, 8086: or :10fb"
            with contextlib.suppress(IOMMUFDError):
                what += f"; for {find_device(text)}: pyiommufd show {shlex.quote(printable(text))}"
            raise click.BadParameter(what, ctx, param)
    return value


@click.command("list", cls=ReadingCommand)
@click.argument("ids", nargs=-1, metavar="[VENDOR:DEVICE]...", callback=_checked_ids, shell_complete=candidates.ids)
@click.option(
    "--driver",
    "drivers",
    multiple=True,
    metavar="NAME",
    shell_complete=candidates.drivers,
    help="On this driver; none: on no driver.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="N",
    help="In this IOMMU group, or in that of this DEVICE.",
    shell_complete=candidates.groups,
)
@click.option("--bus", type=Choice(SUBSYSTEMS), help="On this bus.")
@click.option(
    "--standing",
    "wanted",
    multiple=True,
    type=Choice([one.value for one in Standing]),
    help="With this standing.",
)
@json_option(records.DEVICE)
def list_command(
    ids: tuple[str, ...],
    drivers: tuple[str, ...],
    groups: tuple[str, ...],
    bus: str | None,
    wanted: tuple[str, ...],
    as_json: bool,
) -> None:
    """List devices, with the IOMMU group, driver, interfaces and disks of each, and whether it can be claimed.

    All PCI devices, and those of other buses that have an IOMMU group. Several options of one kind widen the choice,
    different ones narrow it. In VENDOR:DEVICE either number may be left out.

    \b
    vfio            a vfio driver has it
    vfio-noiommu    a vfio driver has it, without an IOMMU: its DMA reaches all memory
    claimable       nothing was found against a claim; pyiommufd plan looks more closely
    in-use          the host uses it, or a member of its group: disks, swap, the default route
    unseen          cannot tell whether the host uses it: not root, or in a container
    unbindable      iommufd would refuse every bind; pyiommufd show says why
    with-parent     goes away when a device above it is claimed, as a drive does behind VMD
    bridge          a PCI bridge, which vfio-pci does not take
    no-group        no IOMMU covers it, whether in use or not
    no-vfio-driver  no vfio driver takes over devices of its bus
    """  # noqa: D301 - click's mark for lines to keep
    numbers = [group_number(text) for text in groups]
    with show_progress("looking at the devices"):
        # Of all, also where some are shown: how one stands depends on its group.
        found = standings(list_devices())
        names = kernel_names(found)
    print_visibility_note()

    def chosen(device: HostDevice) -> bool:
        return (
            bus in (None, device.subsystem)
            and (not drivers or (device.driver or "none") in drivers)
            and (not numbers or device.group_id in numbers)
            and (not wanted or found[device] in wanted)
            and (not ids or any(_has_ids(device, text) for text in ids))
        )

    devices = [device for device in found if chosen(device)]
    if as_json:
        print_json([records.device_record(device, found[device], names[device]) for device in devices])
        return
    print_iommu_note()
    if not devices:
        asked = [*(f"on {name}" for name in drivers), *(f"in group {number}" for number in numbers)]
        asked += [*([f"on the bus {bus}"] if bus else ()), *wanted, *ids]
        there = {device.driver or "none" for device in found}
        near = "".join(did_you_mean(name, there) for name in drivers if name not in there)
        print_none(f"no device {', '.join(asked)}{near}".rstrip())
        return
    print_table(
        ("DEVICE", "ID", "DRIVER", "GROUP", "IOMMU", "STANDING", "NAME"),
        (
            (
                *(one.name, records.ids(one), one.driver, one.group_id, one.iommu, str(found[one])),
                records.in_words(one, names[one]) or None,
            )
            for one in devices
        ),
    )
    if any(found[one] is Standing.VFIO_NOIOMMU for one in devices):
        echo(f"pyiommufd: {Standing.VFIO_NOIOMMU}: {REACHES_ALL}", err=True)


def _has_ids(device: HostDevice, text: str) -> bool:
    vendor, _, number = text.lower().partition(":")
    return vendor in ("", records.hexadecimal(device.vendor_id, 4)) and number in (
        "",
        records.hexadecimal(device.device_id, 4),
    )
