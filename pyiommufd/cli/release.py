"""``pyiommufd release``: give claimed devices back to the host."""

from __future__ import annotations

import click

from pyiommufd.cli import candidates
from pyiommufd.cli.arguments import DeviceArgument
from pyiommufd.cli.changing import dry_run_option, ended_by_signals, say, show_step
from pyiommufd.cli.output import print_none, print_visibility_note
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimState
from pyiommufd.host.claims.release import release as give_back


@click.command()
@click.argument(
    "devices",
    nargs=-1,
    cls=DeviceArgument,
    metavar="[DEVICE]...",
    shell_complete=candidates.claimed,
)
@click.option("--all", "everything", is_flag=True, help="All claims that are kept, or are made at boot.")
@click.option(
    "--leave",
    multiple=True,
    metavar="DEVICE",
    shell_complete=candidates.claimed,
    help="Leave this device as it is, and forget how it was; the rest of its claim is given back. May be repeated.",
)
@dry_run_option
@click.pass_context
def release(
    ctx: click.Context, devices: tuple[str, ...], everything: bool, leave: tuple[str, ...], dry_run: bool
) -> None:
    """Give back what is kept as claimed: the claims that have a DEVICE, or one to --leave, each as a whole.

    Each driver, or none, each driver_override, the virtual functions and power/control are then as they were before the
    claim, and a persistent claim is not made at boot any more. A device that the host uses by now, or whose IOMMU group
    a process has open, is named and left as it is, until the command is run again.

    Steps are printed to the standard output, one a line, each before it is taken.
    """
    if not everything and not devices and not leave:
        raise click.UsageError("name a DEVICE, or --all for every claim: pyiommufd claims lists them", ctx)
    if everything and devices:
        raise click.UsageError("--all is every claim: name no DEVICE besides, or leave --all out", ctx)
    print_visibility_note()
    with ended_by_signals():
        wanted = None if everything else [*devices, *leave]
        before = _claimed()
        names = give_back(wanted, leave=leave or None, report=show_step, dry_run=dry_run)
    for name in () if dry_run else leave:
        say(f"left where it is, and no longer on record: {name}; pyiommufd rebind is the way to its host driver")
    # Those that were on vfio before: mediated ones, say. What is to --leave has its line.
    still = {*_claimed(), *names}
    ended = [] if dry_run or leave else [name for name in before if name not in still]
    if names and not dry_run:
        say(f"given back: {' '.join(names)}")
    if ended:
        say(f"no longer claimed, and left as {'it is' if len(ended) == 1 else 'they are'}: {' '.join(ended)}")
    if not names and not ended:
        print_none("no claim is kept, or made at boot" if everything and not before else "no device to give back")


def _claimed() -> list[str]:
    """The devices that were asked for in claims that are kept."""
    kept = [record for record in journal.readable_records() if record.state is ClaimState.KEPT]
    return list(dict.fromkeys(name for record in kept for name in record.wanted))
