"""``pyiommufd vfs``: the virtual functions of a device, and how many there are."""

from __future__ import annotations

import click

from pyiommufd.cli import candidates
from pyiommufd.cli.arguments import DeviceArgument
from pyiommufd.cli.changing import (
    check_refusals,
    dry_run_option,
    ended_by_signals,
    force_option,
    say,
    show_step,
    show_steps,
)
from pyiommufd.cli.output import (
    ReadingCommand,
    echo,
    json_option,
    print_json,
    print_none,
    print_table,
    print_visibility_note,
)
from pyiommufd.host.claims.vfs import set_vfs, vfs_refusals, vfs_steps
from pyiommufd.host.discovery.devices import HostDevice, find_device
from pyiommufd.host.discovery.vfs import VFs, vfs_of

_KEYS = {
    "device": "the name of the physical function",
    "total": "how many virtual functions it can have; 0: it has no SR-IOV",
    "count": "how many it has",
    "devices": "those",
    "devices.name": "its name",
    "devices.driver": "the driver that it is on, or null",
    "devices.group": "the number of its IOMMU group, or null",
}


@click.command(cls=ReadingCommand)
@click.argument("device", cls=DeviceArgument, shell_complete=candidates.physical_functions)
@click.argument("count", required=False, type=click.IntRange(min=0))
@force_option
@dry_run_option
@json_option(_KEYS)
def vfs(device: str, count: int | None, force: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Show the virtual functions of DEVICE, or set their number to COUNT.

    Those that it has go away first, unless it is that many already. What the host, a claim or a process uses is
    refused, and so is taking them from a DEVICE that a running process has claimed. One that `pyiommufd claim` has
    taken is given back with those that it had before. If a step fails, the previous ones are restored.

    Steps are printed, one a line, each before it is taken; with --json, to the standard error.
    """
    target = find_device(device)
    if count is None:
        _show(target, vfs_of(target), as_json)
        return
    print_visibility_note()
    with ended_by_signals():
        if dry_run:
            show_steps(steps := vfs_steps(target, count))
            check_refusals(vfs_refusals(target, count, force=force))
            if not steps and not as_json:
                print_none(f"no step: {target.name} has {count} already")
            return
        now = set_vfs(target, count, force=force, report=say if as_json else show_step)
        if as_json:
            _show(target, now, as_json)
        elif now.devices:
            say(f"{target.name} has {now.count}: {' '.join(function.name for function in now.devices)}")
        else:
            print_none(f"{target.name} has no virtual functions")


def _show(target: HostDevice, now: VFs, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "device": target.name,
                "total": now.total,
                "count": now.count,
                "devices": [
                    {"name": function.name, "driver": function.driver, "group": function.group_id}
                    for function in now.devices
                ],
            }
        )
        return
    if not now.total:
        echo(f"{target.name} has no SR-IOV: it can have no virtual functions")
        return
    echo(f"{target.name} has {now.count} of {now.total} virtual functions")
    if now.devices:
        print_table(("DEVICE", "DRIVER", "GROUP"), ((d.name, d.driver, d.group_id) for d in now.devices))
