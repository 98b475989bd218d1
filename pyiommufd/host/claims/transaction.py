"""What is done to the machine under one claim's record, a step at a time, and how it is undone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from pyiommufd.errors import ClaimError, CloseError, DeviceNotFoundError, Fix, IOMMUFDError
from pyiommufd.host import drivers, durable, sysfs, uses
from pyiommufd.host.claims import journal, restore
from pyiommufd.host.claims.access import READ_WRITE, grant, granted
from pyiommufd.host.claims.perform import perform
from pyiommufd.host.claims.record import ClaimRecord, ClaimState, DeviceState, GivenNode, start_time
from pyiommufd.host.claims.refusals import bound_elsewhere
from pyiommufd.host.claims.signals import DeferredSignals, deferred_signals
from pyiommufd.host.claims.step_rows import step_causes
from pyiommufd.host.claims.steps import FILE_ACTIONS, Action, Report, Step
from pyiommufd.host.discovery.devices import HostDevice, find_group, from_sys_path
from pyiommufd.host.discovery.sriov import virtual_functions
from pyiommufd.host.holders import holders_among, in_words
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.uses.processes import look_at_processes
from pyiommufd.host.worker import StuckError, Worker

IOMMU_NODE = Path("/dev/iommu")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExclusiveAccess:
    """Exclusive access to the machine's claims: the journal lock is held and signals are deferred.

    In a dry run no signal is deferred, and there is no lock if there is no record.

    Attributes:
        worker: Does what may block; it also holds the lock, until its current access is complete.
        signals: Those that have come.
        reported: What dry runs have reported as undone: ids of claims, and paths of files.
    """

    worker: Worker
    signals: DeferredSignals
    reported: set[str] = field(default_factory=set)


@contextlib.contextmanager
def exclusive_access(*, interruptible: bool = True) -> Iterator[ExclusiveAccess]:
    """Wait until nobody else changes the machine by claims.

    Args:
        interruptible: Whether a signal ends the wait for the lock.

    Raises:
        ClaimError: The record cannot be written, it takes too long, or a signal has come.
    """
    with (
        deferred_signals() as signals,
        journal.locked(check=signals.check if interruptible else lambda: None) as lock,
        Worker(keep=[lock]) as worker,
    ):
        yield ExclusiveAccess(worker, signals)


class Transaction:
    """The steps under one claim's record.

    Args:
        access: The exclusive access under which the steps are taken.
        record: What is on record.
        report: Told of each step before it is taken.
        force: The kinds of uses that are no reason not to take a device from its host driver.
        dry_run: Report the steps of `undo` and take none.
    """

    def __init__(
        self,
        access: ExclusiveAccess,
        record: ClaimRecord,
        report: Report | None = None,
        *,
        force: Collection[str] = (),
        dry_run: bool = False,
    ) -> None:
        self._access = access
        self.record = record
        self._report = report
        self._force = force
        self._dry_run = dry_run
        self._undoing = False
        self.untouched = False
        """Whether `undo` has failed without having changed anything."""

    def carry_out(self, steps: Iterable[Step], what: str, state: ClaimState | None = None) -> None:
        """Take these steps, all or none, and record what the claim is then; None: end the record.

        Raises:
            ClaimError: One of them failed, or a signal has come; what had been done is undone.
        """
        try:
            for step in steps:
                self.apply_step(step)
            if state is None:
                self.remove_record()
            else:
                self.set_state(state)
        except BaseException as error:
            self.fail(error, what)

    def apply_step(self, step: Step) -> None:
        """Record how what it changes is, unless that has been done, and take the step.

        Raises:
            IOMMUFDError: A signal has come, the step has failed, or the host uses the device by now.
            OSError: It cannot be recorded.
        """
        # Only a step that undoes nothing can be interrupted.
        worker, signals = self._access.worker, self._access.signals
        signals.check()
        worker.stop = lambda: signals.pending
        try:
            if step.action is Action.GRANT:
                self._note_node(step)
            elif (
                step.action not in (Action.LOAD_DRIVER, *FILE_ACTIONS)
                and step.target not in (state.name for state in self.record.devices)
            ):  # fmt: skip
                before = restore.device_state(step.folder, worker.read)
                if before is None:
                    raise DeviceNotFoundError(f"{step.target} has gone since the plan was made")
                self.record.devices.append(before)
            self._perform(step)
        finally:
            worker.stop = lambda: False

    def set_state(self, state: ClaimState) -> None:
        """Record what the claim is from now on.

        Raises:
            ClaimError: A signal has come: it is to be undone.
        """
        self._access.signals.check()
        before = self.record.state, self.record.doing
        self.record.state, self.record.doing = state, ""
        try:
            self._write(f"record the claim as {state}")
        except OSError:
            self.record.state, self.record.doing = before
            raise

    def remove_record(self) -> None:
        """Take the record away."""
        durable.commit("remove the record", lambda: journal.remove(self.record))

    def release(self, leave: Collection[str] = ()) -> list[str]:
        """Undo a claim that is whole: it is not made at boot any more either. See `undo`."""
        self.record.removes_file = self.record.file is not None
        return self.undo(leave)

    def undo(self, leave: Collection[str] = ()) -> list[str]:
        """Give everything back, the last first, and end the record when all of it is.

        All devices are looked at before the first step. One that is in use now is left as it is, with its group where
        a process has that, and stays on record.

        Args:
            leave: The names of devices that are left as they are, and taken off the record.

        Returns:
            The names of the devices that are as they were.

        Raises:
            CloseError: Something could not be given back; the rest is, and it stays on record.
            ClaimError: It cannot be recorded that this is begun, and nothing is done.
        """
        plans, errors = self._plan_undo(leave)
        self.untouched = bool(errors) and not plans and not leave and self.record.state is not ClaimState.IN_PROGRESS
        if self.untouched:
            raise CloseError("nothing was changed:", tuple(errors))
        # A record that says "in progress" already will do, should there be no room to write it again.
        self._undoing = self.record.state is ClaimState.IN_PROGRESS
        if not self._dry_run:
            self.record.take_over()
            for name in leave:
                self._forget(name)
            try:
                self._write("record the release")
            except OSError as error:
                self.untouched = True
                raise ClaimError(f"nothing is given back, as that cannot be recorded: {error}") from error
        self._undoing = True
        names: list[str] = []
        # First remove what would make the claim again at boot, whatever happens afterwards.
        errors += self._undo_files([*self._file_back(), *self._nodes_back()])
        for before, steps in plans:
            try:
                for step in steps:
                    self._perform(step)
            except IOMMUFDError as error:
                if step.action is Action.LOAD_DRIVER:
                    error = ClaimError(
                        f"{step.target} stays as it is", error, _leave(_same("to give the rest back and"), before.name)
                    )
                errors.append(error)
            else:
                names.append(before.name)
                self._forget(before.name)
        errors += self._undo_files(self.unit_back())
        if errors:
            self.record.pid = 0  # until somebody tries again
            self._write("record what is left")
            raise CloseError("not everything could be given back to the host:", tuple(errors))
        if self._dry_run:
            self._access.reported.add(self.record.id)
        else:
            self.remove_record()
        return names[::-1]

    def fail(self, error: BaseException, what: str) -> NoReturn:
        """Undo what has been done as something has failed, and raise that.

        Raises:
            ClaimError: What failed is the machine's doing, or something of it could not be undone.
        """
        outcome = "failed and was rolled back"
        undone: list[object] = []
        try:
            self.undo()
        except (OSError, IOMMUFDError) as failure:
            outcome = "failed, and not all of it could be rolled back"
            way = Fix("recover() completes it", "pyiommufd recover completes it")
            undone = [way, "\nthe roll-back left something undone", failure]
            if not isinstance(error, OSError | IOMMUFDError):
                error.add_note(f"the roll-back left something undone: {failure}")
        if isinstance(error, OSError | ClaimError) or (undone and isinstance(error, IOMMUFDError)):
            failed = f"{what} {outcome}"
            said = [failed, error] if isinstance(error, IOMMUFDError) else [f"{failed}: {error}"]
            raise ClaimError(*said, *undone) from error.__cause__ or error
        raise error

    def _plan_undo(self, leave: Collection[str]) -> tuple[list[tuple[DeviceState, list[Step]]], list[BaseException]]:
        """For each device, last first: the steps that restore it, or the error why it is left as it is."""
        plans: list[tuple[DeviceState, list[Step]]] = []
        errors: list[BaseException] = []
        devices = [state for state in reversed(self.record.devices) if state.name not in leave]
        held = _held_groups(devices)
        said: dict[tuple[str, ...], str] = {}
        for before in devices:
            try:
                check_not_stuck(self.record, before)
                steps = steps_to_restore(before, self._access.worker.read)
                if steps and (users := held.get(before.name)):
                    like = said.setdefault(tuple(users), before.name)
                    why = f", as {like} does" if like != before.name else f": {'; '.join(users)}"
                    raise ClaimError(
                        f"{before.name} stays as it is{why}",
                        _leave(_same("end that, and try again, or"), before.name),
                    )
                for step in steps:
                    self._check_unused(step, before.name)
                plans.append((before, steps))
            except OSError as error:
                errors.append(ClaimError(f"{before.name}: {error}"))
            except IOMMUFDError as error:
                errors.append(error)
        return plans, errors

    def _undo_files(self, back: Iterable[Step]) -> list[BaseException]:
        errors: list[BaseException] = []
        for step in back:
            try:
                self._perform(step)
            except IOMMUFDError as error:
                errors.append(error)
        return errors

    def _file_back(self) -> Iterator[Step]:
        file = self.record.file
        if file is not None and self.record.removes_file and Path(file).exists():
            self._access.reported.add(file)
            yield Step(file, Action.REMOVE)

    def _nodes_back(self) -> Iterator[Step]:
        uid = self.record.uid
        if uid is None:
            return
        others = [one for one in self._others() if one.uid == uid]
        for node in self.record.nodes:
            path, place = Path(node.path), node.path
            if node.device is not None:
                try:
                    device = from_sys_path(Path(node.device))
                except DeviceNotFoundError:
                    continue
                # A node goes with its driver, and another device's may have its name by now.
                if device.vfio_cdev != node.path:
                    continue
                place = device.name
            if not path.exists() or any(
                (one.path, one.device) == (node.path, node.device) for other in others for one in other.nodes
            ):
                continue
            with contextlib.suppress(OSError):
                if granted(path, uid) == node.before:
                    continue  # this step was not reached, or is undone already
            yield Step(place, Action.REVOKE, self.record.user, node.device or "")

    def unit_back(self) -> Iterator[Step]:
        """The step that removes the systemd unit, if no persistent claim is left."""
        unit = self.record.unit
        left = [file for file in claim_file.files() if not (self._dry_run and str(file) in self._access.reported)]
        if unit is not None and not left and boot_unit.file().exists() and boot_unit.is_ours():
            yield Step(unit, Action.DISABLE)

    def _others(self) -> list[ClaimRecord]:
        gone = {self.record.id, *self._access.reported}
        return [one for one in journal.read_all()[0] if one.id not in gone]

    def _note_node(self, step: Step) -> None:
        """Record a node's access entry for the user: an undo without a preceding grant then changes nothing."""
        record = self.record
        device = from_sys_path(step.folder) if step.sys_path else None
        node = IOMMU_NODE if device is None else Path(device.vfio_cdev or "")
        if not node.is_char_device():
            of = "" if device is None else f" of {device.name}"
            raise ClaimError(f"there is no node {node}{of} that {record.user} could be given; pyiommufd check says why")
        uid = record.uid or 0
        before = granted(node, uid)
        for other in self._others():
            for given in other.nodes:
                if other.uid == uid and (given.path, given.device) == (str(node), step.sys_path or None):
                    before = given.before  # what there was before any claim gave more
        record.nodes.append(GivenNode(str(node), step.sys_path or None, before))

    def _perform(self, step: Step) -> None:
        """Take a step.

        Raises:
            IOMMUFDError: It has failed, or is not taken, as something uses the device.
            OSError: It cannot be recorded; while undoing, it is taken all the same.
        """
        self._report_step(step)
        if self._dry_run:
            return
        self.record.doing = str(step)
        self._write(f"record that comes next: {step}")
        try:
            self._check_unused(step)
            if step.action in FILE_ACTIONS:
                self._do_file(step)
            else:
                durable.commit(str(step), lambda: perform(step, self._access.worker))
        except OSError as error:
            if isinstance(error, StuckError):
                # Until that process has ended, the kernel may still carry out the write.
                self.record.waiting[step.target] = [error.pid, start_time(error.pid) or 0]
                self._write("record that it has not returned")
            raise ClaimError(f"{step}: {error.strerror or error}", *step_causes(step, error.errno)) from error

    def _do_file(self, step: Step) -> None:
        path = Path(step.target)
        match step.action:
            case Action.ENABLE:
                boot_unit.install()
            case Action.DISABLE:
                boot_unit.remove()
                self.record.unit = None
            case Action.WRITE:
                durable.commit(str(step), lambda: durable.write(path, step.text))
            case Action.REMOVE:
                durable.commit(str(step), lambda: durable.remove(path))
                self.record.file = None
            case _:
                node = next(one for one in self.record.nodes if (one.device or "") == step.sys_path)
                uid, gives = self.record.uid or 0, step.action is Action.GRANT
                permissions = READ_WRITE if gives else node.before
                durable.commit(str(step), lambda: grant(Path(node.path), uid, permissions))
                if not gives:
                    self.record.nodes.remove(node)

    def _check_unused(self, step: Step, name: str = "") -> None:
        """Check once more whether the host uses what a step takes away.

        Args:
            step: The step.
            name: The device of the record that could be left as it is; empty: none can.

        Raises:
            ClaimError: It uses it.
        """
        found: list[object] = []
        devices, kept = [], list[str]()
        if step.action is Action.UNBIND:
            devices = [device for device in [from_sys_path(step.folder)] if drivers.is_on_host_driver(device)]
        elif step.action is Action.SET_VFS:
            devices = [from_sys_path(path) for path in virtual_functions(step.folder)]
            names = {device.name for device in devices}
            for other in self._others() if names else ():
                claimed = sorted(names & other.names)
                found += [f"{name}: it is claimed by {journal.describe_owner(other)}" for name in claimed]
                if other.state is ClaimState.KEPT:
                    kept += claimed
        if devices:
            found += [refusal for refusal in uses.refusals(*devices) if refusal.kind not in self._force]
        if found:
            end = _same("end that")
            if kept:
                end = Fix(f"release({kept!r})", f"pyiommufd release {' '.join(kept)}")
            way = Fix(*(f"{how}, and try again" for how in end))
            raise ClaimError(
                f"{step.target} stays as it is, being in use by now: {'; '.join(map(str, found))}",
                _leave(Fix(*(f"{how}, or" for how in way)), name) if name else way,
            )

    def _forget(self, name: str) -> None:
        record = self.record
        record.devices = [state for state in record.devices if state.name != name]
        record.wanted = [wanted for wanted in record.wanted if wanted != name]
        record.waiting.pop(name, None)

    def _report_step(self, step: Step) -> None:
        if self._report is None:
            return
        try:
            self._report(step)
        except Exception:
            if not self._undoing:
                raise
            # Restoring the devices comes first: continue, without further reports.
            _log.warning("the report callback has failed; the release continues", exc_info=True)
            self._report = None

    def _write(self, what: str) -> None:
        if self._dry_run:
            return
        try:
            durable.commit(what, lambda: journal.write(self.record))
        except OSError as error:
            if not self._undoing:
                raise
            # The record has the original state, from which the restore steps can be computed at any point.
            _log.warning("the record cannot be written (%s); the release continues", error)


def _same(text: str) -> Fix:
    return Fix(text, text)


def _leave(way: Fix, name: str) -> Fix:
    """What to do about a device that cannot be given back; ``way`` is what comes first."""
    text = "leave it as it is for good"
    return Fix(
        f"{way.python} {text}: release([{name!r}], leave=[{name!r}])",
        f"{way.command} {text}: pyiommufd release --leave {name}",
    )


def check_not_stuck(record: ClaimRecord, before: DeviceState) -> None:
    """Refuse a device whose lock, or a virtual function's, is held by a sysfs write that still blocks.

    Raises:
        ClaimError: It is.
    """
    stuck = record.stuck
    for name in (before.name, *(function.name for function in before.vfs)):
        if name not in stuck:
            continue
        pid, _ = record.waiting[name]
        raise ClaimError(
            f"{name}: an earlier write to sysfs still blocks in the kernel (process {pid}); something "
            "still uses the device",
            Fix("once that is closed, recover() completes it", "once that is closed, pyiommufd recover completes it"),
        )


def steps_to_restore(before: DeviceState, read: restore.Read = sysfs.read) -> list[Step]:
    """The steps that give a device back, from how it is now; none where it is gone, or another is in its place."""
    now = restore.device_state(Path(before.sys_path), read)
    if now is None:
        _log.warning("%s is gone, and with it what there was to restore", before.name)
        return []
    if before.identity is not None and now.identity != before.identity:
        _log.warning("%s is another device by now, %s: it is left as it is", before.name, now.identity)
        return []
    steps = list(restore.restore_steps(before, now))
    # Load first, so that a device whose driver cannot be loaded any more stays on its current one.
    loads = [
        replace(step, action=Action.LOAD_DRIVER)
        for step in steps
        if step.action is Action.BIND and not drivers.is_loaded(step.subsystem, step.value or "")
    ]
    return [*dict.fromkeys(loads), *steps]


def _held_groups(states: Iterable[DeviceState]) -> dict[str, list[str]]:
    """Which processes have a device's group, or a virtual function of the device, by the name of the device.

    The kernel would wait for whoever holds the device, without end; and no member can go to a host driver while a
    process has bound another one.
    """
    concerned: dict[str, list[HostDevice]] = {}
    for state in states:
        found: list[HostDevice] = []
        folder = Path(state.sys_path)
        for path in (folder, *virtual_functions(folder)):
            with contextlib.suppress(DeviceNotFoundError):
                device = from_sys_path(path)
                found += [device] if device.group_id is None else find_group(device.group_id).devices
        concerned[state.name] = [device for device in found if device.on_vfio]
    everything = {device: None for found in concerned.values() for device in found}
    if not everything:
        return {}
    processes = look_at_processes(mappings=True)
    unseen = list(bound_elsewhere(everything, processes))
    return {
        name: [
            *in_words(holders_among(processes, found)),
            *(str(one.reason) for one in unseen if one.device in map(str, found)),
        ]
        for name, found in concerned.items()
        if found
    }
