"""``pyiommufd plan``: what a claim would change, and what would undo it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from pyiommufd.cli import records
from pyiommufd.cli.changing import (
    devices_argument,
    driver_option,
    find_devices,
    force_option,
    forced_lines,
    way_out,
)
from pyiommufd.cli.output import ReadingCommand, echo, json_option, print_json, print_visibility_note, show_progress
from pyiommufd.cli.status import status_of_refusals
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.plan import ClaimPlan, plan_claim
from pyiommufd.host.discovery.kernel_names import kernel_names
from pyiommufd.printable import printable

_KEYS = (
    {
        "devices": "the names of the devices asked for",
        "groups": "the numbers of their IOMMU groups",
        "moves": "each device that changes its driver",
        "moves.device": "its name",
        "moves.before": "the driver that it is on, or null",
        "moves.after": "the driver that it will be on, or null: a bridge is left without one",
        "moves.virtual_functions": "the names of its virtual functions, which go away",
        "moves.below": "the names of the devices that its driver has made below it, which go away",
        "stays": "the names of the members that are left as they are",
        "companions": "the names of the other devices concerned: members of the groups, and what goes away",
        "refused": "whether a claim would be refused",
        "refusals": "why, and what could not be seen",
    }
    | records.nested("refusals", records.REFUSAL)
    | {
        "forced": "what it would be refused for without --force, as `refusals`",
        "steps": "what a claim does, in order",
    }
    | records.nested("steps", records.STEP)
    | {"undo": "lines of a shell that undo it by hand"}
)


@click.command(cls=ReadingCommand)
@devices_argument()
@driver_option
@force_option
@json_option(_KEYS)
def plan(devices: tuple[str, ...], driver: str | None, force: tuple[str, ...], as_json: bool) -> None:
    """Show what a claim of each DEVICE, and with them their whole IOMMU groups, would do. Changes nothing.

    Every member of the groups: the driver that it is on and the one it will be on, what stays as it is; the steps in
    order; the commands that undo them by hand; and what a claim would be refused for.

    A disk that seems unused is opened for a moment, exclusively and for reading, as some uses show by nothing else.

    Exit status 1 where it would be refused; 3 where that is for want of an IOMMU, or of what else this machine lacks.
    """
    with show_progress("looking at the devices"):
        made = plan_claim(find_devices(devices), driver=driver, force=force)
    print_visibility_note()
    if (on_vfio := [device.name for device in made.stays if device.on_vfio]) and not journal.is_readable():
        names = ", ".join(on_vfio)
        echo(f"pyiommufd plan: whether a claim has {names} is not seen: run it, or pyiommufd claims, as root", err=True)
    if as_json:
        print_json(_record(made))
    else:
        _print(made)
    if made.refusals:
        sys.exit(status_of_refusals(made.refusals))


def _record(made: ClaimPlan) -> records.Record:
    return {
        "devices": [device.name for device in made.devices],
        "groups": [group.id for group in made.groups],
        "moves": [
            {
                "device": move.device.name,
                "before": move.device.driver,
                "after": move.driver,
                "virtual_functions": [function.name for function in move.vfs],
                "below": [device.name for device in move.below],
            }
            for move in made.moves
        ],
        "stays": [device.name for device in made.stays],
        "companions": [device.name for device in made.companions],
        "refused": bool(made.refusals),
        "refusals": [records.refusal_record(refusal) for refusal in made.refusals],
        "forced": [records.refusal_record(refusal) for refusal in made.forced],
        "steps": [records.step_record(step) for step in made.steps],
        "undo": list(made.undo_commands),
    }


def _print(made: ClaimPlan) -> None:
    sections: list[tuple[str, list[str]]] = [
        ("a claim takes these steps:", list(map(str, made.steps))),
        ("to undo them by hand, as root:", list(made.undo_commands)),
        ("forced:", forced_lines(made.forced)),
        ("it would be refused:", [*(one.for_command() for one in made.refusals), *way_out(made.refusals)]),
    ]
    lines = list(_outline(made))
    for title, content in sections:
        if content:
            lines += [title, *(f"  {line}" for line in content)]
    echo(*map(printable, lines), sep="\n")


def _outline(made: ClaimPlan) -> Iterator[str]:
    """The outline, with the names of the interfaces and disks that each device has now."""
    concerned = {*made.devices, *made.companions}
    words = {f"{device.name}:": names for device, names in kernel_names(concerned).items() if str(names)}
    for line in made.outline:
        first = line.split(maxsplit=1)[0]
        yield line.replace(first, f"{first[:-1]} ({words[first]}):", 1) if first in words else line
