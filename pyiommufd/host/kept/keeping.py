"""Kept claims, with all that belongs to them: drivers, a user's rights to the nodes, and what is to be done at boot.

A kept claim lasts until `release`. It is whole or not there: what a process has left of one that it was making or
releasing, `recover` undoes. Thread safety: everything here waits for others on this machine that do the same.
SIGINT and SIGTERM, where these functions are called from the main thread, wait: while a claim is made it is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import ClaimError, CloseError, IOMMUFDError
from .. import access
from ..claims import steps
from ..claims.claim import Claim
from ..claims.claim import recover as recover_claims
from ..claims.claim import recover_steps as recover_claims_steps
from ..claims.plan import ClaimPlan
from ..claims.signals import HeldBack, held_back
from ..devices import HostDevice
from ..durable import remove_drafts
from ..persistent import boot_unit, claim_file
from ..persistent.claim_file import PersistentClaim, persistent_claim
from ..users import User, find_user
from .parts import AnyStep, FileAction, FileStep, Report, unfailing
from .record import KeptRecord, Node, Stage, locked, new_record, records
from .undo import Kept, chosen, end_of_unit, left_behind, undo

IOMMU_NODE = Path("/dev/iommu")


def keep(plan: ClaimPlan, *, persist: bool = False, user: User | None = None, report: Report | None = None) -> Claim:
    """Carry a plan out for as long as nobody releases it, all of it or nothing.

    Args:
        plan: What to do.
        persist: Make the claim again at every boot, by the systemd unit `boot_unit.NAME` where there is systemd.
        user: Let this user, too, open ``/dev/iommu`` and the nodes of the devices, while the claim lasts.
        report: Called with each step before it is taken, and with those of a roll-back.

    Raises:
        ClaimRefusedError: The host uses one of the devices, or another claim has it.
        ClaimError: A step failed, or the caller is not root; what had been done is undone.
        DeviceNotFoundError: A device has gone since the plan was made.
    """
    report = report or _unseen
    with locked(), held_back() as signals:
        return _make(_order(plan, persist, user), signals, report)


def keep_steps(plan: ClaimPlan, *, persist: bool = False, user: User | None = None) -> tuple[AnyStep, ...]:
    """Exactly what `keep` does, in order; changes nothing.

    Raises:
        ClaimError: As `keep`, as far as it shows before.
    """
    return _order(plan, persist, user).steps()


@dataclass(frozen=True, slots=True)
class AtBoot:
    """What came of a persistent claim.

    Attributes:
        file: Its file; None for what an earlier run had left half done.
        steps: What was done, or is to be.
        devices: The names of the devices that were asked for.
        error: Why nothing of it is done, or None.
        there: Whether it had been made already.
    """

    file: Path | None
    steps: tuple[AnyStep, ...] = ()
    devices: tuple[str, ...] = ()
    error: Exception | None = None
    there: bool = False


def claim_persistent(*, report: Report | None = None) -> list[AtBoot]:
    """Make all persistent claims: what the systemd unit runs at boot. Of each, all is done or nothing.

    What died halfway before is undone first. One that has been made already is left as it is.

    Args:
        report: Called with each step before it is taken, and with those of a roll-back.

    Raises:
        ClaimError: The caller is not root, or a signal has come.
    """
    found: list[AtBoot] = []
    with locked(), held_back() as signals:
        try:
            _recover(report or _unseen)
        except (OSError, IOMMUFDError) as error:
            found.append(AtBoot(None, error=error))
        for file in claim_file.files():
            signals.check()
            found.append(_at_boot(file, lambda order: _make_reported(order, signals, report or _unseen)))
    return found


def claim_persistent_steps() -> list[AtBoot]:
    """What `claim_persistent` would do, after what `recover_steps` returns. Changes nothing."""
    return [_at_boot(file, _Order.steps) for file in claim_file.files()]


def _at_boot(file: Path, carry_out: Callable[[_Order], tuple[AnyStep, ...]]) -> AtBoot:
    try:
        claim = claim_file.read(file)
        names = tuple(identity.name for identity in claim.wanted)
        for record in records():
            if record.file == str(file) and record.stage is Stage.KEPT and record.find_entry() is not None:
                return AtBoot(file, (), names, there=True)
        plan = claim.plan()
        user = None if claim.user is None else find_user(claim.user)
        taken = carry_out(_Order(plan, user, claim, False))
        return AtBoot(file, taken, tuple(device.name for device in plan.devices))
    except (OSError, IOMMUFDError) as error:
        return AtBoot(file, error=error)


def release(devices: Iterable[HostDevice | str] | None = None, *, report: Report | None = None) -> list[str]:
    """Give kept claims back, each as a whole, and do not make them at boot any more.

    Args:
        devices: Any of a claim's devices, also by the name of one that is gone; None: all kept and persistent claims.
        report: Called with each step before it is taken.

    Returns:
        The names of the devices that were given back.

    Raises:
        ClaimError: No kept or persistent claim has one of the devices, and nothing is done; or the caller is not root.
        CloseError: Something could not be restored, such as a device that a process still holds open; the rest is.
            Calling again, or `recover`, completes it.
    """
    with locked(), held_back():
        return _undo_all(chosen(devices), report or _unseen)


def release_steps(devices: Iterable[HostDevice | str] | None = None) -> tuple[AnyStep, ...]:
    """Exactly what `release` does, in order; changes nothing.

    Raises:
        ClaimError: As `release`.
    """
    with locked():
        return _undo_steps(chosen(devices))


def recover(*, report: Report | None = None) -> list[str]:
    """Undo what processes have left that died while they made a claim, and complete the releases that did.

    Kept claims that are whole are left alone, and what living processes hold.

    Args:
        report: Called with each step before it is taken.

    Returns:
        The names of the devices that were given back.

    Raises:
        CloseError: Something could not be restored; the rest is.
        ClaimError: The caller is not root.
    """
    with locked(), held_back():
        return _recover(report or _unseen)


def recover_steps() -> tuple[AnyStep, ...]:
    """Exactly what `recover` does, in order; changes nothing.

    Raises:
        ClaimError: As `recover`.
    """
    with locked():
        return (*recover_claims_steps(), *_undo_steps(left_behind(recovered=True)))


def _recover(report: Report) -> list[str]:
    errors: list[BaseException] = []
    names: list[str] = []
    try:
        names += recover_claims(report=report)
    except CloseError as error:
        errors += error.errors
    try:
        names += _undo_all(left_behind(), report)
    except CloseError as error:
        errors += error.errors
    remove_drafts(claim_file.FOLDER)
    boot_unit.remove_draft()
    if errors:
        raise CloseError("not everything could be given back to the host:", tuple(errors))
    return list(dict.fromkeys(names))


def _undo_all(kept: list[Kept], report: Report) -> list[str]:
    names: list[str] = []
    errors: list[BaseException] = []
    report = unfailing(report)
    for number, one in enumerate(kept):
        try:
            names += undo(one, kept[:number], report)
        except CloseError as error:
            errors += error.errors
    for part in end_of_unit(one.file for one in kept if one.file is not None):
        try:
            part.do(report)
        except (OSError, IOMMUFDError) as error:
            errors.append(error)
    if errors:
        raise CloseError("not everything could be given back to the host:", tuple(errors))
    return names


def _undo_steps(kept: list[Kept]) -> tuple[AnyStep, ...]:
    found: list[AnyStep] = []
    for number, one in enumerate(kept):
        for part in one.parts(kept[:number]):
            found += part.steps()
    for part in end_of_unit(one.file for one in kept if one.file is not None):
        found += part.steps()
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Order:
    """What a kept claim is to be.

    Attributes:
        plan: The plan.
        user: Who is given the nodes.
        persistent: What is, or is to be, on record for the next boot.
        writes: Whether that is to be written.
    """

    plan: ClaimPlan
    user: User | None
    persistent: PersistentClaim | None
    writes: bool

    def steps(self) -> tuple[AnyStep, ...]:
        return (*self.plan.steps, *self.grants(), *self.files())

    def grants(self) -> list[FileStep]:
        if self.user is None:
            return []
        places = [str(IOMMU_NODE), *(device.name for device in self.given())]
        return [FileStep(place, FileAction.GRANT, self.user.name) for place in places]

    def given(self) -> list[HostDevice]:
        """The devices that have a node once the claim is made: not those that stay on pci-stub."""
        moved = {move.device for move in self.plan.moves}
        return [device for device in self.plan.endpoints if device in moved or device.on_vfio]

    def files(self) -> list[FileStep]:
        found = []
        if self.writes and self.persistent is not None:
            if boot_unit.has_systemd() and not boot_unit.is_installed():
                found.append(FileStep(str(boot_unit.file()), FileAction.ENABLE))
            found.append(FileStep(str(self.persistent.file), FileAction.WRITE))
        return found


def _order(plan: ClaimPlan, persist: bool, user: User | None) -> _Order:
    persistent = None
    if persist:
        # What a dead process was making or releasing under a name is undone later, by that name.
        reserved = [record.file for record in records() if record.file is not None]
        persistent = persistent_claim(plan, None if user is None else user.name, reserved=reserved)
    return _Order(plan, user, persistent, persist)


def _make_reported(order: _Order, signals: HeldBack, report: Report) -> tuple[AnyStep, ...]:
    _make(order, signals, report)
    return order.steps()


def _make(order: _Order, signals: HeldBack, report: Report) -> Claim:
    plan, user, persistent = order.plan, order.user, order.persistent
    if user is None and persistent is None:
        kept = plan.apply(keep=True, report=report)
        if signals.pending:
            kept.release(report=unfailing(report))
        signals.check()
        return kept
    record = new_record(sorted({*(move.device.name for move in plan.moves), *map(str, plan.endpoints)}))
    record.file = None if persistent is None else str(persistent.file)
    record.owns_file = order.writes
    if user is not None:
        record.user, record.uid = user.name, user.uid
    claim = None
    try:
        record.write()
        claim = plan.apply(keep=True, report=report)
        entry = record.find_entry()
        record.entry = None if entry is None else entry.id
        _grant(record, order, signals, report)
        for step in order.files():
            signals.check()
            report(step)
            if step.action is FileAction.ENABLE:
                boot_unit.install()
            elif persistent is not None:
                persistent.write()
        signals.check()
        record.stage = Stage.KEPT
        record.write()
    except BaseException as error:
        outcome = "failed and was rolled back"
        record.stage = Stage.MAKING  # whatever it was to become: what is applied at boot stays on record
        tell = unfailing(report)
        try:
            undo(Kept.of(record), (), tell)
            for part in end_of_unit(()):
                part.do(tell)
        except (OSError, IOMMUFDError) as failure:
            outcome = "failed, and not all of it could be rolled back (`pyiommufd recover` completes it)"
            error.add_note(f"and the roll-back left something undone: {failure}")
        # What the plan raises says so itself.
        if isinstance(error, OSError) or (claim is not None and isinstance(error, ClaimError)):
            raise ClaimError(f"the claim {outcome}: {error}") from error
        raise
    return claim


def _grant(record: KeptRecord, order: _Order, signals: HeldBack, report: Report) -> None:
    user = order.user
    if user is None:
        return
    holders = [None, *(device.refreshed() for device in order.given())]
    for step, device in zip(order.grants(), holders, strict=True):
        signals.check()
        report(step)
        node = IOMMU_NODE if device is None else Path(device.vfio_cdev or "")
        if not node.is_char_device():
            of = "" if device is None else f" of {device.name}"
            raise ClaimError(f"there is no node {node}{of} that {user} could be given; pyiommufd check says why")
        # On record first: what is undone without having been done is as it was.
        before = _before(node, user.uid, record)
        record.nodes.append(Node(str(node), None if device is None else str(device.sys_path), before))
        record.write()
        steps.cross(str(step), lambda node=node: access.grant(node, user.uid))  # type: ignore[misc]


def _before(node: Path, uid: int, record: KeptRecord) -> int | None:
    """What a user had been given by name before any claim gave more."""
    for other in records():
        for given in other.nodes:
            if other.id != record.id and other.uid == uid and given.path == str(node):
                return given.before
    return access.granted(node, uid)


def _unseen(step: AnyStep) -> None:
    del step
