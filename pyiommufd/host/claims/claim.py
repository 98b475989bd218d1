"""Taking devices from the host, and giving the host back exactly what it had."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from ...errors import ClaimError, ClaimRefusedError, CloseError, DeviceNotFoundError, ForkedError
from ..devices import HostDevice, as_device
from . import journal
from .plan import ClaimPlan, claimed, names_of, plan_claim
from .steps import Step
from .transaction import Report, Transaction, Turn, check_not_stuck, turn, way_back


class Claim:
    """Devices taken from the host, with their whole IOMMU groups. Made by `ClaimPlan.apply`.

    A context manager: leaving it gives everything back, unless the claim is a kept one. Where the process dies first,
    `recover` does.

    Thread safety: `release` may be called from any thread; it and other claims of the machine wait for
    each other.
    """

    def __init__(self, plan: ClaimPlan, entry: journal.Entry, run: Path) -> None:
        self._plan = plan
        self._entry = entry
        self._run = run
        self._pid = os.getpid()
        self._kept = entry.state is journal.State.KEPT
        self._released = False

    @property
    def devices(self) -> tuple[HostDevice, ...]:
        """The devices that were asked for, as they are now.

        Raises:
            DeviceNotFoundError: One is gone.
            ForkedError: Asked for in a forked child.
        """
        if os.getpid() != self._pid:
            raise ForkedError("this claim belongs to the process that made it")
        return tuple(device.refreshed() for device in self._plan.devices)

    @property
    def plan(self) -> ClaimPlan:
        """The plan that was carried out."""
        return self._plan

    @property
    def kept(self) -> bool:
        """Whether it outlives this process and the ``with`` block."""
        return self._kept

    @property
    def released(self) -> bool:
        """Whether everything has been given back, as far as this object knows."""
        return self._released

    def release(self, *, report: Report | None = None) -> None:
        """Give everything back: each driver, or none, each driver_override and the virtual functions as they were.

        What had gone away with a device, its driver makes anew by itself (`pyiommufd.host.claims.plan.Move.below`).
        Does nothing when called again, or in a forked child. A device that is gone by now is logged and left.
        SIGINT and SIGTERM, where this is called from the main thread, wait until it is done.

        Args:
            report: Called with each step before it is taken.

        Raises:
            CloseError: Something could not be restored, such as a device that a process still holds open; the
                rest is restored. The record stays, so that calling again, or `recover`, completes it.
            ClaimError: The record cannot be written.
        """
        if self._released or os.getpid() != self._pid:
            return
        with turn(self._run, patient=True) as mine:
            # By the record as it is now: somebody else may have released a kept claim, or recovered this one.
            entry = journal.find(self._run, self._entry.id)
            if entry is not None:
                Transaction(mine, entry, report).undo()
        self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            self.release()

    def __repr__(self) -> str:
        names = ", ".join(device.name for device in self._plan.devices)
        return f"<Claim of {names}{' (released)' if self._released else ''}>"


def carry_out(plan: ClaimPlan, run: Path | None = None, *, keep: bool = False, report: Report | None = None) -> Claim:
    """Carry a plan out; see `ClaimPlan.apply`."""
    run = journal.RUN if run is None else run
    claim = None
    try:
        with turn(run) as mine:
            # First what is quick to see: of many that want a device all but one are refused, while the others wait.
            if taken := tuple(claimed(names_of(plan.groups, plan.moves), run)):
                raise ClaimRefusedError(taken)
            plan = _afresh(plan)
            if plan.refusals:
                raise ClaimRefusedError(plan.refusals)
            wanted = [device.name for device in plan.devices]
            entry = journal.Entry.begin([group.id for group in plan.groups], wanted)
            transaction = Transaction(mine, entry, report)
            try:
                for step in plan.steps:
                    transaction.take(step)
                transaction.mark(journal.State.KEPT if keep else journal.State.SESSION)
            except BaseException as error:
                transaction.fail(error, "the claim")
            claim = Claim(plan, entry, run)
    except BaseException:
        # A signal that came after the last step, and has taken effect just now.
        if claim is not None:
            claim.release()
        raise
    return claim


def _afresh(plan: ClaimPlan) -> ClaimPlan:
    """The same plan over the machine as it is now.

    What the caller was shown is what is done: where the groups have other members by now, or a member another
    driver, the plan has to be made, and seen, again.
    """
    now = plan_claim(plan.devices, driver=plan.driver, force=plan.force)
    if now.outline != plan.outline or now.steps != plan.steps:
        raise ClaimError(f"the machine has changed since the plan was made; plan again. Now:\n{now}")
    return now


def release(devices: Iterable[HostDevice | str | Path] | None = None, *, report: Report | None = None) -> list[str]:
    """Give the kept claims back that have these devices, each as a whole; see `Claim.release`.

    A kept claim whose release has died halfway is one, too.

    Args:
        devices: Any of a claim's devices; None: all kept claims.
        report: Called with each step before it is taken.

    Returns:
        The names of the devices that were given back.

    Raises:
        ClaimError: No kept claim has one of the devices, and nothing is released; or the caller is not root.
        CloseError: Something could not be restored; the rest is.
    """
    with turn(journal.RUN) as mine:
        return _undo_all(mine, _kept(devices), report)


def release_steps(devices: Iterable[HostDevice | str | Path] | None = None) -> tuple[Step, ...]:
    """What `release` would do to the machine, in order.

    Raises:
        ClaimError: As `release` does.
    """
    with _looking():
        return _steps(_kept(devices))


def recover(*, report: Report | None = None) -> list[str]:
    """Undo the claims whose process is gone, and complete the releases that died or failed halfway.

    A kept claim that is complete is left alone, and so is what a living process holds.

    Args:
        report: Called with each step before it is taken.

    Returns:
        The names of the devices that were given back.

    Raises:
        CloseError: Something could not be restored; the rest is.
        ClaimError: The caller is not root; or a file among the records is none: the others' claims are undone.
    """
    with turn(journal.RUN) as mine:
        entries, errors = _left_behind()
        return _undo_all(mine, entries, report, errors)


def recover_steps() -> tuple[Step, ...]:
    """What `recover` would do to the machine, in order.

    Raises:
        ClaimError: As `recover` does.
    """
    with _looking():
        entries, errors = _left_behind()
        if errors:
            raise errors[0]
        return _steps(entries)


def _looking() -> contextlib.AbstractContextManager[object]:
    """Nobody is in the middle of a claim meanwhile; where there is no record, none is begun by looking."""
    return journal.locked(journal.RUN) if journal.RUN.exists() else contextlib.nullcontext()


def _undo_all(
    mine: Turn, entries: list[journal.Entry], report: Report | None, errors: Iterable[ClaimError] = ()
) -> list[str]:
    names: list[str] = []
    failures: list[BaseException] = list(errors)
    foreign = len(failures)
    for entry in entries:
        try:
            names += Transaction(mine, entry, report).undo()
        except CloseError as error:
            failures += error.errors
    if len(failures) > foreign:
        raise CloseError("not everything could be given back to the host:", tuple(failures))
    if failures:
        raise failures[0]
    return names


def _steps(entries: list[journal.Entry]) -> tuple[Step, ...]:
    found: list[Step] = []
    for entry in entries:
        for before in reversed(entry.devices):
            check_not_stuck(entry, before)
            found += way_back(before)
    return tuple(found)


def _read() -> tuple[list[journal.Entry], list[ClaimError]]:
    """The entries, the latest first: of two of one device the first has to have the last word."""
    entries, errors = journal.read_all(journal.RUN)
    return entries[::-1], errors


def _left_behind() -> tuple[list[journal.Entry], list[ClaimError]]:
    """What nobody is at any more. Who carries a claim out has the lock, so one in progress is not."""
    entries, errors = _read()
    return [entry for entry in entries if not _is_held(entry)], errors


def _is_held(entry: journal.Entry) -> bool:
    return entry.state is journal.State.KEPT or (entry.state is journal.State.SESSION and entry.alive)


def _kept(devices: Iterable[HostDevice | str | Path] | None) -> list[journal.Entry]:
    entries, errors = _read()
    if errors:
        raise errors[0]
    kept = [entry for entry in entries if entry.state is not journal.State.SESSION]
    if devices is None:
        return kept
    if isinstance(devices, HostDevice | str | Path):
        devices = [devices]
    chosen: list[journal.Entry] = []
    for device in devices:
        name = _name(device, kept)
        having = [entry for entry in kept if name in entry.names]
        if not having:
            others = next((f": it is claimed by {entry.who}" for entry in entries if name in entry.names), "")
            raise ClaimError(f"no kept claim has {name}{others}")
        chosen += [entry for entry in having if entry not in chosen]
    return chosen


def _name(device: HostDevice | str | Path, entries: list[journal.Entry]) -> str:
    """The name of a device that may be gone by now."""
    try:
        return as_device(device).name
    except DeviceNotFoundError:
        name = device.name if isinstance(device, HostDevice) else Path(device).name
        if any(name in entry.names for entry in entries):
            return name
        raise
