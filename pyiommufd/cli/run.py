"""``pyiommufd run``: claim devices, hand them to a virtual machine monitor, and give them back when it ends."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
from click.shell_completion import CompletionItem

from pyiommufd.cli import candidates
from pyiommufd.cli.arguments import Choice, vf_token_value
from pyiommufd.cli.changing import devices_argument, dry_run_option, force_option, forced_lines, way_out
from pyiommufd.cli.output import echo, print_visibility_note, said
from pyiommufd.errors import NEVER_FORCED, CloseError, HandoverError, IOMMUFDError
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.claim import Claim
from pyiommufd.host.claims.plan import ClaimPlan, plan_claim
from pyiommufd.host.claims.record import ClaimState
from pyiommufd.printable import listed, printable
from pyiommufd.vmm import UNLIMITED, VMM, Handover, Kind, User, command_line, hostdev_xml, kind_of, shell_line
from pyiommufd.vmm.commands import has_places
from pyiommufd.vmm.handover import VARIABLE
from pyiommufd.vmm.removal import RemovalNotices
from pyiommufd.vmm.signals import blocked_signals, pending_signal, wait_forwarding
from pyiommufd.vmm.stragglers import adopt_orphans, end_stragglers
from pyiommufd.vmm.vf_token import TOKEN_VARIABLE, check_token, token_fds
from pyiommufd.vmm.vmm import check_memlock, check_start, inherited_fds, with_groups

COULD_NOT_START = 125
"""The exit status where the command has none, or where its devices could not be given back."""

_COMMAND = "pyiommufd.run.command"
_REMOVAL_SECONDS = 10.0
_FDS_BY_ENVIRONMENT = (
    f"{{}} is no monitor that is known by its name: it finds the numbers of its fds in {VARIABLE}, the iommufd's first;"
    " if it starts a monitor with the arguments that it gets: --vmm qemu, or --vmm cloud-hypervisor; else --vmm other"
)


class _RunCommand(click.Command):
    """A command whose own arguments end at ``--``; what follows is the VMM's command line, passed on unparsed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what follows ``--`` for the callback."""
        own = args[: args.index("--")] if "--" in args else args
        if own is not args:
            ctx.meta[_COMMAND] = args[len(own) + 1 :]
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The usage, with the command."""
        return [*super().collect_usage_pieces(ctx), "-- VMM [ARGS]..."]


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """MiB, or the word unlimited, as bytes."""
    if value in (None, "unlimited"):
        return None if value is None else UNLIMITED
    if not value.isdecimal():
        raise click.BadParameter(f"{printable(value)} is neither a number of MiB nor unlimited", ctx, param)
    try:
        size = int(value) << 20
        check_memlock(size)
    except ValueError as error:  # int's own, too, for thousands of digits
        raise click.BadParameter(str(error), ctx, param) from None
    except HandoverError:
        pass  # not a usage error: this process may not set that limit, which is reported with its own exit status
    return size


def _device_or_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    complete = candidates.files if _COMMAND in ctx.meta else candidates.claimable
    return complete(ctx, param, incomplete)


@click.command(cls=_RunCommand)
@devices_argument(_device_or_file)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="More for each device, as the monitor's own option takes it, such as bus=rp1 for QEMU; may be repeated.",
)
@click.option(
    "--user",
    metavar="NAME",
    shell_complete=candidates.accounts,
    help="Run VMM as this user, without any privilege; it opens no node itself.",
)
@click.option(
    "--memlock",
    callback=_bytes,
    metavar="MIB|unlimited",
    help="How much memory VMM may lock: all of the machine's and 1 GiB more is enough. It is for --user; root has no "
    "limit.",
)
@click.option(
    "--vf-token",
    callback=vf_token_value,
    metavar="UUID",
    help="The VF token that the user of a physical function on a vfio driver has set, where its virtual functions are "
    "among the DEVICEs; of a DEVICE that is a physical function, and comes before these, it sets it. One for all. "
    "Cloud Hypervisor takes none; QEMU does since 8.1, but as of 11.1 not with iommufd: the kernel then refuses it the "
    "virtual function.",
)
@force_option
@click.option(
    "--vmm",
    "kind",
    type=Choice([kind.value for kind in Kind]),
    help="Which arguments VMM takes. [by its name]",
)
@click.option(
    "--print",
    "show",
    is_flag=True,
    help="Print the command line for a shell, and libvirt's XML for the devices; claim and start nothing.",
)
@dry_run_option
@click.pass_context
def run(
    ctx: click.Context,
    devices: tuple[str, ...],
    options: tuple[str, ...],
    user: str | None,
    memlock: int | None,
    vf_token: uuid.UUID | None,
    force: tuple[str, ...],
    kind: str | None,
    show: bool,
    dry_run: bool,
) -> None:
    """Run VMM, a virtual machine monitor, with each DEVICE, and give the devices back when it ends.

    The devices are claimed with their whole IOMMU groups. VMM gets each one open and unbound, and an iommufd, as fds,
    and arguments that say so: QEMU's -object iommufd and -device vfio-pci, Cloud Hypervisor's --platform and --device.
    Any other program finds the numbers in PYIOMMUFD_FDS, the iommufd's first, or where its arguments have {iommufd},
    {device0}, {device1} and so on; and what --vf-token says in PYIOMMUFD_VF_TOKEN, or for {vf-token}.

    VMM also inherits the fds that this command was started with. Signals are passed on to VMM. It is killed if this
    command is; then pyiommufd recover gives the devices back. Where a wrapper such as a shell starts VMM as a process
    of its own, the wrapper is killed in its place: have it exec VMM.

    The exit status is VMM's: 128+N for signal N, and 125 where it could not be started or the devices could not be
    given back.
    """
    command: list[str] = ctx.meta.get(_COMMAND, [])
    if not command and not show:
        raise click.UsageError("no VMM: pyiommufd run DEVICE... -- VMM ARGS", ctx)
    chosen = None if kind is None else Kind(kind)
    try:
        if command:
            # For its refusals, before anything is touched; the fds' numbers come later.
            command_line(command, range(len(devices) + 1), kind=chosen, options=options, vf_token=vf_token)
    except ValueError as error:
        raise click.UsageError(said(error), ctx) from None
    try:
        plan = plan_claim(devices, force=force)
        print_visibility_note()
        for line in forced_lines(plan.forced):
            _tell(f"forced: {line}")
        _check_translated(plan, command, chosen)
        check_token(plan.devices, vf_token)
        who = None if user is None else with_groups(user)
        if not show:
            _check_all_kept(plan)
            check_start(command, len(plan.devices), user=who, memlock=memlock)
        if vf_token is not None and command and (chosen or kind_of(command[0])) is Kind.QEMU:
            _tell("QEMU, as of 11.1, makes no use of a VF token with iommufd: the kernel may refuse it the device")
        if command and chosen is None and kind_of(command[0]) is Kind.OTHER and not has_places(command):
            _tell(_FDS_BY_ENVIRONMENT.format(printable(command[0])))
        if show:
            _print(plan, command, chosen, options, vf_token, who, memlock)
            return
        if dry_run:
            sys.exit(_dry_run(plan, command, chosen, options, vf_token))
        # Until the monitor is there, to which they go then. What is ignored, as under nohup, stays so.
        for number, handler in ((signal.SIGTERM, _leave), (signal.SIGHUP, _hang_up)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)
        sys.exit(_Run(plan, command, chosen, options, who, memlock, vf_token).run())
    except (IOMMUFDError, OSError, ValueError) as error:
        _tell(said(error))
        sys.exit(COULD_NOT_START)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _check_translated(plan: ClaimPlan, command: Sequence[str], kind: Kind | None) -> None:
    """Refuse a virtual machine monitor, and libvirt, a device without an IOMMU.

    Raises:
        HandoverError: It is one, and there is such a device.
    """
    without = [device.name for device in plan.devices if device.without_iommu]
    if without and not (command and (kind or kind_of(command[0])) is Kind.OTHER):
        forced = "" if "noiommu" in plan.force or _is_kept(plan) else " --force noiommu"
        raise HandoverError(
            f"no IOMMU covers {listed(without)}: the VM's addresses would not be translated, so that its DMA would hit "
            f"memory of this machine at those addresses; run a program that asks for physical addresses: --vmm other"
            f"{forced}"
        )


class _Run:
    """One run of a monitor with devices."""

    def __init__(
        self,
        plan: ClaimPlan,
        command: Sequence[str],
        kind: Kind | None,
        options: Sequence[str],
        user: User | None,
        memlock: int | None,
        vf_token: uuid.UUID | None,
    ) -> None:
        self._plan = plan
        self._command = command
        self._kind = kind
        self._options = options
        self._user = user
        self._memlock = memlock
        self._vf_token = vf_token
        self._inherited = inherited_fds()  # before any are opened

    def run(self) -> int:
        """Claim, run, give back. Returns the exit status."""
        if _is_kept(self._plan):
            # Claimed by `pyiommufd claim`, and that claim's to give back.
            with blocked_signals() as mask:
                return self._serve(mask)
        with self._plan.apply(report=_tell) as claim, blocked_signals() as mask:
            try:
                return self._serve(mask)
            finally:
                _give_back(claim)

    def _serve(self, mask: set[signal.Signals | int]) -> int:
        adopt_orphans()
        devices = tuple(device.refreshed() for device in self._plan.devices)
        with Handover.open(devices, vf_token=self._vf_token) as handover:
            if (number := pending_signal()) is not None:
                return 128 + number
            line = command_line(
                self._command,
                handover.fds,
                kind=self._kind,
                options=self._options,
                vf_token=self._vf_token,
                vf_token_fds=token_fds(handover.fds, devices),
            )
            _tell(shlex.join(line))
            vmm = VMM(line, handover, user=self._user, memlock=self._memlock, mask=mask, keep_fds=self._inherited)
        try:
            who = f"pid {vmm.pid} ({Path(self._command[0]).name})"
            with vmm, RemovalNotices(devices, _tell, who) as notices:
                status = wait_forwarding(vmm)
                notices.settle(_REMOVAL_SECONDS)
        finally:
            end_stragglers(devices, _tell)
        if status < 0:
            # Real-time signals have no names in Python.
            names = {number.value: number.name for number in signal.Signals}
            _tell(f"{self._command[0]} was ended by {names.get(-status, f'signal {-status}')}")
        return status if status >= 0 else 128 - status


def _kept_names() -> set[str]:
    """The names of the devices that ``pyiommufd claim`` has; for root."""
    with journal.locked():
        records = journal.records()
    return {name for record in records if record.state is ClaimState.KEPT for name in record.names}


def _check_all_kept(plan: ClaimPlan) -> None:
    """Refuse devices of which ``pyiommufd claim`` has some and not all.

    Raises:
        HandoverError: It has.
    """
    if os.geteuid() != 0 or not any(refusal.kind == NEVER_FORCED for refusal in plan.refusals):
        return
    kept = _kept_names()
    have, lack = ([one.name for one in plan.devices if (one.name in kept) is there] for there in (True, False))
    if have and lack:
        raise HandoverError(
            f"pyiommufd claim has taken {', '.join(have)}, and not {', '.join(lack)}: run takes devices that are all "
            f"claimed so, or none: pyiommufd claim {' '.join(lack)}, or pyiommufd release {' '.join(have)}"
        )


def _is_kept(plan: ClaimPlan) -> bool:
    """Whether ``pyiommufd claim`` has all devices, so that there is nothing to take and nothing to give back.

    A user who is not root may have been given the nodes of such devices, and not the record of them.
    """
    if plan.moves:
        return False
    if os.geteuid() != 0:
        return True
    return _kept_names().issuperset(device.name for device in plan.devices)


def _give_back(claim: Claim) -> None:
    try:
        claim.release(report=_tell)
    except CloseError:
        if all(move.device.sys_path.exists() for move in claim.plan.moves):
            raise
        claim.release(report=_tell)  # a device has gone meanwhile, and there is nothing to restore of it any more
    if claim.plan.moves:
        _tell(f"given back: {', '.join(move.device.name for move in claim.plan.moves)}")


def _print(
    plan: ClaimPlan,
    command: Sequence[str],
    kind: Kind | None,
    options: Sequence[str],
    vf_token: uuid.UUID | None,
    user: User | None,
    memlock: int | None,
) -> None:
    # The XML is for a VM, and of PCI devices.
    pci = [device for device in plan.devices if device.subsystem == "pci" and not device.without_iommu]
    if command:
        whose = "a shell" if user is None and memlock is None else "root's shell"
        forced = [f"--force {refusal}" for refusal in sorted(plan.force)]
        claimed = [device.name for device in plan.devices if not device.is_mediated]  # those are bound without a claim
        claim = " ".join(["pyiommufd claim", *forced, *claimed])
        line = shell_line(
            command, plan.devices, kind=kind, options=options, vf_token=vf_token, user=user, memlock=memlock
        )
        echo(f"# for {whose}{f', once they are claimed ({claim})' if claimed else ''}:")
        echo(line)
        if pci:
            echo("# for a domain of libvirt, likewise:")
    for device in pci:
        echo(hostdev_xml(device))
    _say_refusals(plan, "a claim of these devices would be refused")


def _say_refusals(plan: ClaimPlan, what: str) -> bool:
    """Say why the plan would be refused, and what overrides that. Returns whether it would be."""
    refusals = plan.refusals
    if not refusals or _is_kept(plan):
        return False
    _tell(f"{what}:")
    for line in [*(one.for_command() for one in refusals), *way_out(refusals)]:
        echo(f"  {line}", err=True)
    return True


def _dry_run(
    plan: ClaimPlan, command: Sequence[str], kind: Kind | None, options: Sequence[str], vf_token: uuid.UUID | None
) -> int:
    fds = range(3, 4 + len(plan.devices))
    takers = token_fds(fds, plan.devices)
    line = shlex.join(command_line(command, fds, kind=kind, options=options, vf_token=vf_token, vf_token_fds=takers))
    if vf_token is not None and (kind or kind_of(command[0])) is Kind.OTHER:
        line = f"{TOKEN_VARIABLE}={vf_token} {line}"
    for step in (*plan.steps, line, *plan.undo):
        echo(step)
    return COULD_NOT_START if _say_refusals(plan, "the claim would be refused") else 0


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)


def _hang_up(number: int, frame: FrameType | None) -> None:
    # A claim that is being made knows what to do at a SIGTERM.
    del number, frame
    signal.raise_signal(signal.SIGTERM)


def _tell(text: object) -> None:
    echo(f"pyiommufd run: {text}", err=True)
