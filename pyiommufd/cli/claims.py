"""``pyiommufd claims``: what is claimed now, and what is to be at boot."""

from __future__ import annotations

import datetime
import sys
from dataclasses import asdict

import click

from pyiommufd.cli.output import (
    ReadingCommand,
    echo,
    fitted,
    json_option,
    print_json,
    print_none,
    print_table,
    print_visibility_note,
)
from pyiommufd.cli.status import FAILED
from pyiommufd.host.claims.status import ClaimStatus, list_claims

_KEYS = {
    "devices": "the names of the devices that were asked for, or are left of these",
    "others": "the names of the other devices that it has taken, or that have gone away with one",
    "groups": "the numbers of the IOMMU groups",
    "state": "kept (until a release), session (of a process), in progress (or left half done), newer (made by a newer "
    "pyiommufd), not made (on record for every boot, and not made now)",
    "pid": "the owning process, or null if there is none or it has ended",
    "who": "the owner, in words",
    "since": "when it was begun, in ISO 8601 format, or null",
    "file": "the file that has it made at every boot, or null",
    "user": "the user who may open the devices, or null",
    "stuck": "what is not as it should be, a sentence each",
}


@click.command(cls=ReadingCommand)
@json_option(_KEYS)
def claims(as_json: bool) -> None:
    """Show what is claimed now: by whom, since when, whether at every boot, and what of it is stuck.

    Requires root, who owns the record. Exit status 1 if a file in the record's folder is not a record.
    """
    found, errors = list_claims()
    print_visibility_note()
    if as_json:
        print_json([asdict(one) | {"since": _time(one)} for one in found])
    elif found:
        rows = [
            (" ".join(one.devices) or None, one.state, one.pid, _time(one), "yes" if one.file else "no", one.user)
            for one in found
        ]
        print_table(("DEVICES", "STATE", "PID", "SINCE", "AT BOOT", "USER"), rows)
        for one in found:
            with_them = [f"took with it {' '.join(one.others)}"] if one.others else []
            for sentence in (*with_them, *one.stuck):
                echo(fitted(f"{' '.join(one.devices)}: {sentence}"))
    else:
        print_none("nothing is claimed")
    for error in errors:
        echo(f"pyiommufd claims: {error.for_command()}", err=True)
    if errors:
        sys.exit(FAILED)


def _time(one: ClaimStatus) -> str | None:
    if one.since is None:
        return None
    return datetime.datetime.fromtimestamp(one.since).astimezone().isoformat(timespec="seconds")
