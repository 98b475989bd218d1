"""``pyiommufd release``: give claimed devices back to the host."""

from __future__ import annotations

import click

from pyiommufd.cli.arguments import DeviceName
from pyiommufd.cli.changing import dry_run_option, ended_by_signals, say, show_step, show_steps
from pyiommufd.cli.output import say_outlook
from pyiommufd.host.kept import keeping


@click.command()
@click.argument("devices", nargs=-1, type=DeviceName(), metavar="[DEVICE]...")
@dry_run_option
def release(devices: tuple[str, ...], dry_run: bool) -> None:
    """Give back what pyiommufd claim has taken: the claims that have a DEVICE, each as a whole, or all of them.

    Each driver, or none, each driver_override and the virtual functions are then as they were before the claim, and a
    persistent claim is not made at boot any more. A device that a process still holds open is named, and stays until
    the command is run again, or pyiommufd recover.

    Steps are printed to the standard output, one a line, each before it is taken.
    """
    wanted = devices or None
    say_outlook()
    with ended_by_signals():
        if dry_run:
            show_steps(keeping.release_steps(wanted))
            return
        names = keeping.release(wanted, report=show_step)
        say(f"given back: {' '.join(names)}" if names else "no device was claimed")
