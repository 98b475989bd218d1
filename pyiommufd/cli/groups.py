"""``pyiommufd groups``: the IOMMU groups, and who stops one from being used."""

from __future__ import annotations

import sys

import click

from pyiommufd.cli import candidates, records
from pyiommufd.cli.arguments import group_number
from pyiommufd.cli.output import (
    ReadingCommand,
    echo,
    json_option,
    print_iommu_note,
    print_json,
    print_none,
    print_words,
    show_progress,
    style,
)
from pyiommufd.cli.status import MISSING
from pyiommufd.host.checks.lacks import no_iommu, untranslated
from pyiommufd.host.discovery.devices import HostDevice, find_group, list_groups
from pyiommufd.host.discovery.groups import Group, is_safe
from pyiommufd.host.discovery.kernel_names import KernelNames, kernel_names
from pyiommufd.host.overview.standing import Standing, standings


@click.command(cls=ReadingCommand)
@click.argument("wanted", nargs=-1, metavar="[GROUP|DEVICE]...", shell_complete=candidates.groups)
@click.option("--shared", is_flag=True, help="Only groups of several devices.")
@json_option(records.GROUP)
def groups(wanted: tuple[str, ...], shared: bool, as_json: bool) -> None:
    """Show IOMMU groups: the devices that can only be passed through together.

    All of them, or those of these numbers or with these devices. A group is viable when no member is on a host driver.
    A claim makes it so. The addresses shown are those that mappings have to avoid.
    """
    with show_progress("looking at the groups"):
        if (lack := no_iommu()) is not None and not list_groups():  # VFIO may have made some
            if as_json:
                print_json([])
            echo(f"pyiommufd groups: {lack}", err=True)
            sys.exit(MISSING)
        found = [find_group(number) for number in dict.fromkeys(map(group_number, wanted))] or list_groups()
        chosen = [group for group in found if not shared or len(group.devices) > 1]
        standing = standings(device for group in chosen for device in group.devices)
        names = kernel_names(standing)
    if as_json:
        print_json([records.group_record(group, standing, names) for group in chosen])
    elif chosen:
        print_iommu_note()
        for group in chosen:
            _print(group, standing, names)
    else:
        print_none("no group has several devices")


def _print(group: Group, standing: dict[HostDevice, Standing], names: dict[HostDevice, KernelNames]) -> None:
    count = len(group.devices)
    state = style("viable", fg="green") if group.viable else style("not viable", fg="yellow")
    kind = "made by VFIO" if group.is_made_by_vfio else group.type
    echo(style(f"group {group.id}", bold=True), f"  {count} device{'s' if count != 1 else ''}, {kind}, ", state)
    for dma in filter(None, map(untranslated, group.devices)):  # VFIO makes a group for each such device
        echo(f"  no IOMMU: {dma}")
    for device in group.devices:
        words = [style(device.name)]
        if (ids := records.ids(device)) is not None:
            words.append(style(ids))
        words += [style(device.driver or "no driver"), style(standing[device])]
        if not is_safe(device):
            words.append(style("blocks the group", fg="yellow"))
        print_words(words, records.in_words(device, names[device]), "  ", "      ")
    for region in group.reserved_regions:
        echo(f"  reserved {region.start:#x}..{region.last:#x} ({region.type})")
