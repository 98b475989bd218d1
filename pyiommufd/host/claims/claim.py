"""Taking devices from the host, and giving the host back exactly what it had."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pyiommufd.errors import ClaimError, ClaimRefusedError, ForkedError
from pyiommufd.host.claims import journal, transaction
from pyiommufd.host.claims.record import ClaimRecord, ClaimState
from pyiommufd.host.claims.refusals import claimed_refusals
from pyiommufd.host.claims.steps import Action, Report, Step, device_step
from pyiommufd.host.claims.transaction import Transaction, exclusive_access
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.persistent import boot_unit, claim_file, environment
from pyiommufd.host.persistent.claim_file import PersistentClaim, persistent_claim
from pyiommufd.host.users import User, find_user
from pyiommufd.printable import listed

if TYPE_CHECKING:
    from pyiommufd.host.claims.plan import ClaimPlan


class Claim:
    """Devices taken from the host, with their whole IOMMU groups. Made by `ClaimPlan.apply`.

    A context manager: leaving it gives everything back, unless the claim is a kept one. Where the process dies first,
    `recover` does.

    Thread safety: `release` may be called from any thread; it and other claims of the machine wait for
    each other.
    """

    def __init__(self, plan: ClaimPlan, record: ClaimRecord) -> None:
        self._plan = plan
        self._id = record.id
        self._pid = os.getpid()
        self._kept = record.state is ClaimState.KEPT
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
        """Give everything back: each driver, or none, each driver_override, the virtual functions, power/control.

        And what else belongs to the claim: a user may no longer open the nodes, and it is not made at boot any more.
        What had gone away with a device, its driver makes anew by itself (`Move.below`).
        Does nothing when called again, or in a forked child. A device that is gone by now is logged and left.
        SIGINT and SIGTERM, where this is called from the main thread, wait until it is done.

        Args:
            report: Called with each step before it is taken.

        Raises:
            CloseError: Something could not be restored: a process holds a device's IOMMU group, or the host uses the
                device by now; it is left as it is, and the rest is restored. The record stays, so that calling again
                completes it. Where nothing can be restored, nothing is changed.
            ClaimError: The record cannot be written, or is a newer version's by now.
        """
        if self._released or os.getpid() != self._pid:
            return
        with exclusive_access(interruptible=False) as access:
            # By the record as it is now: somebody else may have released a kept claim, or recovered this one.
            record = journal.find(self._id)
            if record is not None and record.state is ClaimState.NEWER:
                raise ClaimError(f"{self!r} is on record as made by {journal.describe_owner(record)}")
            if record is not None:
                Transaction(access, record, report).release()
        self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            self.release()

    def __repr__(self) -> str:
        state = ", released" if self._released else ", kept" if self._kept else ""
        return f"<Claim of {listed(self._plan.devices)}{state}>"


def carry_out(
    plan: ClaimPlan,
    *,
    keep: bool = False,
    persist: bool = False,
    user: User | str | int | None = None,
    persistent: PersistentClaim | None = None,
    report: Report | None = None,
) -> Claim:
    """Carry a plan out; see `ClaimPlan.apply`. ``persistent``: what is on record for every boot, and is made now."""
    if persist and not keep:
        raise ValueError("a persistent claim is one that is kept: keep=True")
    user = find_user(str(user)) if isinstance(user, str | int) else user
    claim = None
    try:
        with exclusive_access() as access:
            # The cheap check first: if many processes want one device, all but one are refused while the others wait.
            if taken := tuple(claimed_refusals(plan._names)):
                raise ClaimRefusedError(taken)
            plan = plan._recomputed()
            if plan.refusals:
                raise ClaimRefusedError(plan.refusals)
            record = ClaimRecord.begin([group.id for group in plan.groups], [device.name for device in plan.devices])
            if user is not None:
                record.user, record.uid = user.name, user.uid
            if persist:
                persistent = _persistent(plan, user)
                record.removes_file = True
            elif persistent is not None and claim_file.read(persistent.file) != persistent:
                raise ClaimError(f"{persistent.file} has changed meanwhile")
            if persistent is not None:
                record.file = str(persistent.file)
                record.unit = str(boot_unit.file()) if boot_unit.has_systemd() else None
            work = Transaction(access, record, report, force=plan.force)
            steps = _steps(plan, user, persistent if persist else None)
            work.carry_out(steps, "the claim", ClaimState.KEPT if keep else ClaimState.SESSION)
            claim = Claim(plan, record)
    except BaseException:
        # A signal that came after the last step, and has taken effect just now.
        if claim is not None:
            claim.release()
        raise
    return claim


def claim_steps(plan: ClaimPlan, *, persist: bool = False, user: User | None = None) -> tuple[Step, ...]:
    """Exactly what `ClaimPlan.apply` does, in order; changes nothing.

    Raises:
        ClaimError: As `ClaimPlan.apply`, as far as it shows before.
    """
    return _steps(plan, user, _persistent(plan, user) if persist else None)


def _persistent(plan: ClaimPlan, user: User | None) -> PersistentClaim:
    environment.check()
    # What a dead process was making or releasing under a name is undone later, by that name.
    reserved = [record.file for record in journal.readable_records() if record.file is not None]
    return persistent_claim(plan, None if user is None else user.name, reserved=reserved)


def _steps(plan: ClaimPlan, user: User | None, persistent: PersistentClaim | None) -> tuple[Step, ...]:
    steps = list(plan.steps)
    if user is not None:
        steps.append(Step(str(transaction.IOMMU_NODE), Action.GRANT, user.name))
        moved = {move.device for move in plan.moves}
        steps += [
            device_step(device, Action.GRANT, user.name)
            for device in plan.devices
            # Only devices that have a node by then. Other members, such as an LPC controller, need no user access.
            if device in moved or device.on_vfio
        ]
    if persistent is not None:
        # The file is written last: once it exists, the next boot makes the claim.
        if boot_unit.has_systemd() and not boot_unit.is_installed():
            steps.append(Step(str(boot_unit.file()), Action.ENABLE))
        steps.append(Step(str(persistent.file), Action.WRITE, text=persistent.text))
    return tuple(steps)
