"""``pyiommufd claim``: take devices from the host, until they are released, and at every boot if asked to."""

from __future__ import annotations

import sys

import click

from pyiommufd.cli import candidates
from pyiommufd.cli.arguments import LISTED, DeviceArgument
from pyiommufd.cli.changing import (
    check_refusals,
    driver_option,
    dry_run_option,
    ended_by_signals,
    failed,
    find_devices,
    force_option,
    forced_lines,
    say,
    show_step,
    show_steps,
)
from pyiommufd.cli.output import print_none, print_visibility_note
from pyiommufd.cli.status import FAILED
from pyiommufd.errors import ClaimError
from pyiommufd.host.claims.at_boot import claim_persistent
from pyiommufd.host.claims.claim import claim_steps
from pyiommufd.host.claims.plan import ClaimPlan, plan_claim
from pyiommufd.host.limits import lock_limit
from pyiommufd.host.persistent import boot_unit
from pyiommufd.host.users import User, find_user
from pyiommufd.printable import listed


def _user(ctx: click.Context, param: click.Parameter, value: str | None) -> User | None:
    try:
        return None if value is None else find_user(value)
    except ClaimError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@click.argument(
    "devices",
    nargs=-1,
    cls=DeviceArgument,
    metavar="[DEVICE]...",
    shell_complete=candidates.claimable,
)
@click.option("--persist", is_flag=True, help="Claim them again at every boot, by what they are, not by their address.")
@click.option(
    "--user",
    callback=_user,
    shell_complete=candidates.accounts,
    metavar="NAME",
    help="Let this user open /dev/iommu and the nodes of each DEVICE, not of others in their groups, while it is "
    "claimed.",
)
@driver_option
@force_option
@click.option(
    "--persistent",
    is_flag=True,
    help="Make the claims that are on record for every boot: what the systemd unit runs. No DEVICE then.",
)
@dry_run_option
@click.pass_context
def claim(
    ctx: click.Context,
    devices: tuple[str, ...],
    persist: bool,
    user: User | None,
    driver: str | None,
    force: tuple[str, ...],
    persistent: bool,
    dry_run: bool,
) -> None:
    """Take each DEVICE, and with them their whole IOMMU groups, from the host to their vfio drivers.

    All of it or nothing. Refused unless --force names the kind: what the host uses, such as disks with mounted
    filesystems and the network interface of the default route; what cannot be seen from here to be unused; and what
    iommufd could not bind. What is claimed already is refused in any case. Devices stay claimed until pyiommufd
    release, or a reboot. pyiommufd plan shows before what would be done.

    With --persist they are claimed anew at every boot. The file under /etc/pyiommufd/claims.d says what they are known
    by: ids, serial number, slots. Where a boot does not find each of them for certain, or the host uses one by then,
    nothing of that claim is done; what --force names is forced at every boot too. That is after the mounts of disks and
    before the network is set up: take a card out of the host's network configuration yourself.

    Steps are printed to the standard output, one a line, each before it is taken.
    """
    if persistent:
        if devices or persist or user is not None or driver is not None or force:
            raise click.UsageError(
                "--persistent takes what is on record: no DEVICE, --persist, --user, --driver or --force", ctx
            )
        with ended_by_signals():
            _at_boot(dry_run)
        return
    if not devices:
        raise click.UsageError(f"no DEVICE; {LISTED}", ctx)
    with ended_by_signals():
        plan = plan_claim(find_devices(devices), driver=driver, force=force)
        print_visibility_note()
        for line in forced_lines(plan.forced):
            say(f"forced: {line}")
        without = [device for device in plan.devices if device.without_iommu]
        if user is not None and user.uid != 0 and without:
            say(f"{user.name} is given the node of {listed(without)}, and opens it only with CAP_SYS_RAWIO")
        if dry_run:
            check_refusals(plan.refusals)
            show_steps(steps := claim_steps(plan, persist=persist, user=user))
            if not steps:
                print_none(f"no step: on vfio already: {' '.join(device.name for device in plan.devices)}")
            return
        plan.apply(keep=True, persist=persist, user=user, report=show_step)
        _say_what_follows(plan, persist, user)


def _say_what_follows(plan: ClaimPlan, persist: bool, user: User | None) -> None:
    names = " ".join(device.name for device in plan.devices)
    if not plan.moves and not persist and user is None:
        way = f"to their host drivers: pyiommufd release {names}, then pyiommufd rebind {names}"
        if all(device.is_mediated for device in plan.devices):
            way = "mediated devices are bound without a claim; to remove one: pyiommufd release and mdev remove"
        say(f"on vfio already, and claimed there: {names}; {way}")
        return
    unasked = [move.device.name for move in plan.moves if move.device not in plan.devices]
    say(f"claimed {names}" + (f", and along with it {' '.join(unasked)}" if unasked else ""))
    say(f"to give back: pyiommufd release {names}")
    if user is not None:
        say(lock_limit(user).advice(user))
    if persist and not boot_unit.has_systemd():
        say(f"there is no systemd here: have root run this at boot, after all disks are mounted: {boot_unit.command()}")


def _at_boot(dry_run: bool) -> None:
    outcomes = claim_persistent(report=show_step, dry_run=dry_run)
    if not outcomes:
        print_none("no claim is on record for every boot")
    for outcome in outcomes:
        if outcome.error is not None:
            say(f"{outcome.file or 'what was left half done'}: nothing is done: {failed(outcome.error)}")
        else:
            done = "claimed already" if outcome.already_claimed else "would be claimed" if dry_run else "claimed"
            say(f"{outcome.file}: {done}: {' '.join(outcome.devices)}")
    if any(outcome.error is not None for outcome in outcomes):
        sys.exit(FAILED)
