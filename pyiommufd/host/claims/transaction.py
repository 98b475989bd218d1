"""What is done to the machine under one entry of the record, a step at a time, and how it is undone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ...errors import ClaimError, CloseError, DeviceNotFoundError
from .. import drivers, sysfs, uses
from ..devices import HostDevice, from_sys_path
from ..helper import Helper, StuckError
from ..holders import holders
from . import journal, restore, steps
from .perform import perform
from .signals import HeldBack, held_back
from .steps import Action, Step

_log = logging.getLogger(__name__)

Report = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Turn:
    """This process's turn to change the machine: it has the lock, and signals wait.

    Attributes:
        run: The folder of the record.
        helper: Does what may block; it holds the lock as well, until what it was asked for is done.
        signals: Those that have come.
    """

    run: Path
    helper: Helper
    signals: HeldBack


@contextlib.contextmanager
def turn(run: Path, *, patient: bool = False) -> Iterator[Turn]:
    """Wait for this process's turn.

    Args:
        run: The folder of the record.
        patient: Signals do not end the wait either.

    Raises:
        ClaimError: The record cannot be written, it takes too long, or a signal has come.
    """
    with (
        held_back() as signals,
        journal.locked(run, check=(lambda: None) if patient else signals.check) as lock,
        Helper(keep=[lock]) as helper,
    ):
        yield Turn(run, helper, signals)


class Transaction:
    """The steps under one entry of the record.

    Args:
        turn: This process's.
        entry: What is recorded.
        report: Told of each step before it is taken.
    """

    def __init__(self, turn: Turn, entry: journal.Entry, report: Report | None = None) -> None:
        self._turn = turn
        self.entry = entry
        self._report = report
        self._undoing = False

    def take(self, step: Step) -> None:
        """Record how the device is, unless that has been done, and take the step.

        Raises:
            ClaimError: A signal has come, or a driver cannot be loaded.
            OSError: What the kernel answered; `StuckError` where it has not.
        """
        # Only a step that undoes nothing can be interrupted.
        helper, signals = self._turn.helper, self._turn.signals
        signals.check()
        helper.stop = lambda: signals.pending
        try:
            if step.action is not Action.LOAD_DRIVER and step.device not in (b.name for b in self.entry.devices):
                before = restore.look(step.folder, helper.read)
                if before is None:
                    raise DeviceNotFoundError(f"{step.device} has gone since the plan was made")
                self.entry.devices.append(before)
            self._do(step)
        finally:
            helper.stop = lambda: False

    def mark(self, state: journal.State) -> None:
        """Record what the claim is from now on.

        Raises:
            ClaimError: A signal has come: it is to be undone.
        """
        self._turn.signals.check()
        before = self.entry.state, self.entry.doing
        self.entry.state, self.entry.doing = state, ""
        try:
            self._write(f"record the claim as {state}")
        except OSError:
            self.entry.state, self.entry.doing = before
            raise

    def end(self) -> None:
        """Take the entry off the record."""
        steps.cross("remove the record", lambda: journal.remove(self._turn.run, self.entry))

    def undo(self) -> list[str]:
        """Give everything back, the last first, and take it off the record when all of it is.

        Returns:
            The names of the devices that are as they were.

        Raises:
            CloseError: Something could not be given back; the rest is, and the record stays.
            ClaimError: It cannot be recorded that this is begun, and nothing is done.
        """
        # A record that says "in progress" already will do, should there be no room to write it again.
        self._undoing = self.entry.state is journal.State.IN_PROGRESS
        self.entry.take_over()
        try:
            self._write("record the release")
        except OSError as error:
            raise ClaimError(f"nothing is given back, as that cannot be recorded: {error}") from error
        self._undoing = True
        errors: list[BaseException] = []
        names = []
        # One look at all processes is enough, mostly: it is what takes time.
        held = bool(holders(*_on_vfio(self.entry.devices)))
        for before in reversed(self.entry.devices):
            try:
                self._give_back(before, held)
                names.append(before.name)
            except (OSError, ClaimError) as error:
                errors.append(error)
        if errors:
            raise CloseError("not everything could be given back to the host:", tuple(errors))
        self.end()
        return names[::-1]

    def fail(self, error: BaseException, what: str) -> NoReturn:
        """Undo what has been done as something has failed, and raise that.

        Raises:
            ClaimError: What failed is the machine's doing.
        """
        outcome = "failed and was rolled back"
        try:
            self.undo()
        except CloseError as failure:
            outcome = "failed, and not all of it could be rolled back (`pyiommufd recover` completes it)"
            error.add_note(f"and the roll-back left something undone: {failure}")
        if isinstance(error, OSError | ClaimError):
            raise ClaimError(f"{what} {outcome}: {error}") from error
        raise error

    def _give_back(self, before: journal.Before, held: bool) -> None:
        check_not_stuck(self.entry, before)
        way = way_back(before, self._turn.helper.read)
        if held and any(step.action in (Action.UNBIND, Action.SET_VFS) for step in way):
            _check_not_held(before)
        for step in way:
            self._do(step)

    def _do(self, step: Step) -> None:
        self._tell(step)
        self.entry.doing = str(step)
        self._write(f"record that comes next: {step}")
        try:
            steps.cross(str(step), lambda: perform(step, self._turn.helper))
        except StuckError as error:
            # Until that process is gone the kernel may still do as it was asked.
            self.entry.waiting[step.device] = [error.pid, journal.start_time(error.pid) or 0]
            self._write("record that it has not returned")
            raise

    def _tell(self, step: Step) -> None:
        if self._report is None:
            return
        try:
            self._report(step)
        except Exception:
            if not self._undoing:
                raise
            # The machine comes first: the rest is given back all the same, and nobody is told of it.
            _log.warning("whoever is told of the steps has failed; the release goes on", exc_info=True)
            self._report = None

    def _write(self, what: str) -> None:
        try:
            steps.cross(what, lambda: journal.write(self._turn.run, self.entry))
        except OSError as error:
            if not self._undoing:
                raise
            # What is on record is how everything was: that is what the way back is found by, from wherever it begins.
            _log.warning("the record cannot be written (%s); the release goes on", error)


def check_not_stuck(entry: journal.Entry, before: journal.Before) -> None:
    """Keep off a device that the kernel is still at, or at a virtual function of it: its lock is taken.

    Raises:
        ClaimError: It is.
    """
    stuck = entry.stuck
    for name in (before.name, *(function.name for function in before.vfs)):
        if name not in stuck:
            continue
        pid, _ = entry.waiting[name]
        raise ClaimError(
            f"{name}: what was asked of the kernel earlier has not returned (process {pid} waits for it); something "
            "still uses the device: once that is closed, `pyiommufd recover` does the rest"
        )


def way_back(before: journal.Before, read: restore.Read = sysfs.read) -> list[Step]:
    """The steps that give a device back, from how it is now; none where it is gone, or another is in its place."""
    now = restore.look(Path(before.sys_path), read)
    if now is None:
        _log.warning("%s is gone, and with it what there was to restore", before.name)
        return []
    if before.identity is not None and now.identity != before.identity:
        _log.warning("%s is another device by now, %s: it is left as it is", before.name, now.identity)
        return []
    if now.driver != before.driver and (found := _used_at_home(Path(before.sys_path))):
        _log.warning("%s is in use on its host driver by now and left there: %s", before.name, "; ".join(found))
        return []
    way: list[Step] = []
    for step in restore.steps_back(before, now):
        if step.action is Action.BIND and not drivers.is_loaded(step.subsystem, step.value or ""):
            way.append(Step(step.device, Action.LOAD_DRIVER, step.value, step.sys_path, step.subsystem))
        way.append(step)
    return way


def _used_at_home(folder: Path) -> list[str]:
    """What the host does with a device that is on a driver of its own; nothing where it is on none."""
    device = from_sys_path(folder)
    return [refusal.reason for refusal in uses.refusals(device)] if drivers.is_home(device) else []


def _on_vfio(recorded: Iterable[journal.Before]) -> list[HostDevice]:
    """The devices of a record, and their virtual functions of now, that a vfio driver has."""
    found = []
    for before in recorded:
        folder = Path(before.sys_path)
        for path in (folder, *restore.virtual_functions(folder)):
            with contextlib.suppress(DeviceNotFoundError):
                found.append(from_sys_path(path))
    return [device for device in found if device.on_vfio]


def _check_not_held(before: journal.Before) -> None:
    """The kernel would wait for whoever holds the device, without end and without saying so.

    Raises:
        ClaimError: A process does.
    """
    for device in _on_vfio([before]):
        if users := holders(device):
            raise ClaimError(f"{device.name} cannot leave {device.driver}: " + "; ".join(map(str, users)))
