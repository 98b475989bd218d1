"""Taking devices from the host, and giving the host back exactly what it had."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import ClaimError, ClaimRefusedError, CloseError, DeviceNotFoundError, ForkedError, Refusal
from . import drivers, journal
from .devices import HostDevice, from_sys_path
from .holders import holders
from .plan import ClaimPlan, Move, plan_claim

_log = logging.getLogger(__name__)


class Claim:
    """Devices taken from the host, with their whole IOMMU groups. Made by `ClaimPlan.apply`.

    A context manager: leaving it gives everything back. Where the process dies first, `recover` does.

    Thread safety: `release` may be called from any thread; it and other claims of the machine wait for
    each other.
    """

    def __init__(self, plan: ClaimPlan, entry: journal.Entry, run: Path) -> None:
        self._plan = plan
        self._entry = entry
        self._run = run
        self._pid = os.getpid()
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
    def released(self) -> bool:
        """Whether everything has been given back."""
        return self._released

    def release(self) -> None:
        """Give everything back: each driver, or none, and each driver_override as it was.

        Does nothing when called again, or in a forked child. A device that is gone by now is logged and left.

        Raises:
            CloseError: Something could not be restored, such as a device that a process still holds open; the
                rest is restored. The record stays, so that calling again, or `recover`, completes it.
        """
        if self._released or os.getpid() != self._pid:
            return
        with journal.locked(self._run):
            _restore(self._run, self._entry)
        self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        names = ", ".join(device.name for device in self._plan.devices)
        return f"<Claim of {names}{' (released)' if self._released else ''}>"


def carry_out(plan: ClaimPlan, run: Path | None = None) -> Claim:
    """Carry a plan out; see `ClaimPlan.apply`."""
    run = journal.RUN if run is None else run
    with journal.locked(run):
        plan = _afresh(plan)
        refusals = list(plan.refusals)
        concerned = {device.name for group in plan.groups for device in group.devices}
        for other in journal.entries(run):
            taken = concerned & {before.name for before in other.devices}
            who = f"process {other.pid}" if other.alive else "a process that is gone; `recover` gives it back"
            if other.state is journal.State.KEPT:
                who = "`pyiommufd claim`"
            refusals += [Refusal(name, "claimed", f"it is claimed already, by {who}") for name in sorted(taken)]
        for move in plan.moves:
            for holder in holders(move.device):
                refusals.append(Refusal(move.device.name, "held", str(holder)))
        if refusals:
            raise ClaimRefusedError(tuple(refusals))
        for subsystem, driver in {(move.device.subsystem, move.driver) for move in plan.moves if move.driver}:
            drivers.load_driver(subsystem, driver)
        pid = os.getpid()
        entry = journal.Entry(
            id=uuid.uuid4().hex,
            state=journal.State.IN_PROGRESS,
            pid=pid,
            start_time=journal.start_time(pid) or 0,
            groups=[group.id for group in plan.groups],
        )
        try:
            for move in plan.moves:
                _take(run, entry, move)
            entry.state = journal.State.SESSION
            journal.write(run, entry)
        except BaseException as error:
            try:
                _restore(run, entry)
            except CloseError as failure:
                error.add_note(f"and the roll-back left something undone: {failure}")
            if isinstance(error, OSError):
                raise ClaimError(f"the claim failed and was rolled back: {error}") from error
            raise
    return Claim(plan, entry, run)


def _afresh(plan: ClaimPlan) -> ClaimPlan:
    """The same plan over the machine as it is now.

    What the caller was shown is what is done: where the groups have other members by now, or a member another
    driver, the plan has to be made, and seen, again.
    """
    now = plan_claim(plan.devices, force=plan.force)
    if now.outline != plan.outline:
        raise ClaimError(f"the machine has changed since the plan was made; plan again. Now:\n{now}")
    return now


def _take(run: Path, entry: journal.Entry, move: Move) -> None:
    device = move.device
    override = drivers.driver_override(device)
    before = journal.Before(device.name, device.subsystem, str(device.sys_path), drivers.driver_of(device), override)
    entry.devices.append(before)
    journal.write(run, entry)
    if move.driver is None:
        drivers.unbind(device)
        return
    # The override first: a device between drivers is then not probed by its old one.
    drivers.set_driver_override(device, move.driver)
    drivers.unbind(device)
    drivers.bind(device, move.driver)


def _restore(run: Path, entry: journal.Entry) -> None:
    """Undo what an entry records, the last first, and take it off the record when all of it is undone."""
    entry.state = journal.State.IN_PROGRESS
    entry.pid = os.getpid()
    entry.start_time = journal.start_time(entry.pid) or 0
    journal.write(run, entry)
    errors: list[BaseException] = []
    for before in reversed(entry.devices):
        try:
            _give_back(before)
        except (OSError, ClaimError) as error:
            errors.append(error)
    if errors:
        raise CloseError("not everything could be given back to the host:", tuple(errors))
    journal.remove(run, entry)


def _give_back(before: journal.Before) -> None:
    try:
        device = from_sys_path(Path(before.sys_path))
    except DeviceNotFoundError:
        _log.warning("%s is gone, and with it what there was to restore", before.name)
        return
    if device.driver != before.driver and device.driver is not None:
        # The kernel would wait for them, without end and without saying so.
        users = holders(device) if device.on_vfio else ()
        if users:
            raise ClaimError(f"{device.name} cannot leave {device.driver}: " + "; ".join(map(str, users)))
        drivers.unbind(device)
    if before.driver is not None and drivers.driver_of(device) is None:
        # An override set while the device was on another driver would not let it back there.
        wanted = before.driver if before.driver_override is not None else None
        if drivers.driver_override(device) != wanted:
            drivers.set_driver_override(device, wanted)
        drivers.bind(device, before.driver)
    if drivers.driver_override(device) != before.driver_override:
        drivers.set_driver_override(device, before.driver_override)


def recover() -> list[str]:
    """Undo the claims whose process is gone, and complete the releases that died halfway.

    A kept claim that is complete is left alone, and so is what a living process holds.

    Returns:
        The names of the devices that were given back.

    Raises:
        CloseError: Something could not be restored; the rest is.
        ClaimError: The caller is not root.
    """
    run = journal.RUN
    restored: list[str] = []
    errors: list[BaseException] = []
    with journal.locked(run):
        for entry in journal.entries(run):
            if entry.state is journal.State.KEPT or entry.alive:
                continue
            try:
                _restore(run, entry)
                restored += [before.name for before in entry.devices]
            except CloseError as error:
                errors += error.errors
    if errors:
        raise CloseError("not everything could be given back to the host:", tuple(errors))
    return restored
