"""``pyiommufd recover``: undo what processes have left behind that died."""

from __future__ import annotations

import click

from pyiommufd.cli.changing import dry_run_option, ended_by_signals, say, show_step
from pyiommufd.cli.output import print_none, print_visibility_note
from pyiommufd.host.claims.release import recover as undo


@click.command()
@dry_run_option
def recover(dry_run: bool) -> None:
    """Undo claims whose process is gone, and complete releases that died or failed halfway.

    What pyiommufd claim has taken stays, unless it died before it was done; and so does what a living process has.

    Steps are printed to the standard output, one a line, each before it is taken.
    """
    print_visibility_note()
    with ended_by_signals():
        names = undo(report=show_step, dry_run=dry_run)
    if not names:
        print_none("no device was left behind")
    elif not dry_run:
        say(f"given back: {' '.join(names)}")
