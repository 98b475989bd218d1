"""``pyiommufd holders``: which processes keep a device from being bound, unbound or unplugged."""

from __future__ import annotations

import os

import click

from pyiommufd.cli import records
from pyiommufd.cli.arguments import device_argument
from pyiommufd.cli.output import (
    ReadingCommand,
    echo,
    json_option,
    print_json,
    print_none,
    print_table,
    print_visibility_note,
    show_progress,
)
from pyiommufd.host.discovery.devices import find_device
from pyiommufd.host.holders import holders as find_holders


@click.command(cls=ReadingCommand)
@device_argument
@click.option("--group", "whole_group", is_flag=True, help="Of every member of its IOMMU group.")
@json_option(records.HOLDER)
def holders(device: str, whole_group: bool, as_json: bool) -> None:
    """Show which processes hold DEVICE open: by its vfio node, its group's legacy node, or mapped registers.

    Run it on the host, as root: other users' processes, and those outside a container, are not seen from there.
    """
    target = find_device(device)
    group = target.group if whole_group else None
    with show_progress("looking at the processes"):
        found = find_holders(*(group.devices if group is not None else [target]))
    print_visibility_note()
    if as_json:
        print_json([records.holder_record(holder) for holder in found])
    elif found:
        print_table(("PID", "COMMAND", "NODE", "BY"), ((h.pid, h.command, h.node, h.how) for h in found))
    else:
        print_none(f"no process that is seen holds {'a member of the group of ' if whole_group else ''}{target.name}")
    if os.geteuid() != 0:
        echo("pyiommufd holders: other users' processes are not seen; run it as root", err=True)
