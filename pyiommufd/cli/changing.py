"""Code shared by the commands that change devices: ``--dry-run``, ``--force``, step output, signal handling.

Steps go to the standard output, a line each before it is taken, and nothing else does: with ``--dry-run`` the same
lines are printed and nothing is done. All other messages go to standard error.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType

import click

from pyiommufd.cli import candidates
from pyiommufd.cli.arguments import Choice, DeviceArgument
from pyiommufd.cli.candidates import Completer
from pyiommufd.cli.output import Function, echo, said
from pyiommufd.cli.status import FAILED
from pyiommufd.errors import ClaimError, ClaimRefusedError, IOMMUFDError, Refusal, override
from pyiommufd.host.claims.steps import Step
from pyiommufd.host.discovery.devices import HostDevice, find_device
from pyiommufd.host.uses import FORCIBLE


def devices_argument(completer: Completer = candidates.claimable) -> Callable[[Function], Function]:
    """The devices that a command is about.

    Args:
        completer: What the shell completes them with.
    """
    return click.argument(
        "devices", nargs=-1, required=True, cls=DeviceArgument, metavar="DEVICE...", shell_complete=completer
    )


dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the steps that would be taken, in order, and take none."
)


def force_option_of(kinds: Sequence[str], whose: str = "") -> Callable[[Function], Function]:
    """``--force`` with some of the kinds of refusals; ``whose``: of what they are, after a comma."""
    return click.option(
        "--force",
        multiple=True,
        type=Choice(kinds),
        metavar="KIND",
        help=f"Override all refusals of this kind{whose}; may be repeated. Kinds: {', '.join(kinds)}.",
    )


force_option = force_option_of(FORCIBLE, ", of any member of the groups")
driver_option = click.option(
    "--driver",
    metavar="NAME",
    shell_complete=candidates.vfio_drivers,
    help="The vfio driver for each DEVICE, such as vfio-pci where its variant driver is not wanted. Other members of "
    "the group get the one that is chosen by default.",
)


class _SignalledError(Exception):
    """A signal has ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")


def say(text: object) -> None:
    """Print a message that is not a step, on standard error."""
    echo(text, err=True)


def show_step(step: Step) -> None:
    """Print a step."""
    echo(step)


def show_steps(steps: Iterable[Step]) -> None:
    """Print steps that are not taken."""
    for step in steps:
        echo(step)


def find_devices(names: Iterable[str]) -> list[HostDevice]:
    """The devices of these names."""
    return [find_device(name) for name in names]


def way_out(refusals: Sequence[Refusal]) -> list[str]:
    """A line that says how refusals can be overridden; none where nothing is refused."""
    return [override(refusals).command] if refusals else []


def forced_lines(refusals: Sequence[Refusal]) -> list[str]:
    """What is done in spite of what, and what stays in the way of it."""
    needs = dict.fromkeys(refusal.needs for refusal in refusals if refusal.needs)
    return [
        *(refusal.for_command() for refusal in refusals),
        *(f"the claim fails unless {one}" for one in needs),
        *dict.fromkeys(refusal.leaves for refusal in refusals if refusal.leaves),
    ]


def check_refusals(refusals: Sequence[Refusal], what: str = "the claim") -> None:
    """Raise, in a dry run, the refusals that the command itself would raise.

    Raises:
        ClaimRefusedError: There are refusals.
    """
    if refusals:
        raise ClaimRefusedError(tuple(refusals), what)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP end a command once what it was doing is done or undone, with status 1."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise _SignalledError(number)

    def hang_up(number: int, frame: FrameType | None) -> None:
        # The terminal was closed: finish or undo the current operation, as for SIGTERM.
        del number, frame
        signal.raise_signal(signal.SIGTERM)

    handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: hang_up}
    before = {number: signal.getsignal(number) for number in handlers}
    try:
        for number, handler in handlers.items():
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    except _SignalledError as error:
        # The signal made the current operation fail; its error message says what was undone.
        reason = error.__context__
        text = reason.for_command() if isinstance(reason, ClaimError) else str(error)
        say(f"pyiommufd: {text}")
        sys.exit(FAILED)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def failed(error: Exception) -> str:
    """The error message with its notes."""
    if isinstance(error, IOMMUFDError | OSError):
        return said(error)
    return "\n".join([repr(error), *getattr(error, "__notes__", ())])
