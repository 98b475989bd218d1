"""Changes the number of virtual functions of a physical function."""

from __future__ import annotations

import operator
from collections.abc import Collection
from pathlib import Path

from pyiommufd.errors import ClaimError, ClaimRefusedError, Refusal
from pyiommufd.host import uses
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord
from pyiommufd.host.claims.refusals import claimed_refusals, holder_refusals
from pyiommufd.host.claims.steps import Action, Report, Step, device_step
from pyiommufd.host.claims.transaction import Transaction, exclusive_access
from pyiommufd.host.discovery.devices import HostDevice, as_device
from pyiommufd.host.discovery.vfs import VFs, vfs_of
from pyiommufd.host.uses.snapshot import MachineSnapshot


def vfs_steps(device: HostDevice | str | Path, count: int) -> tuple[Step, ...]:
    """The steps of `set_vfs`; none where the device has that many.

    Raises:
        ClaimError: The device cannot have so many.
        DeviceNotFoundError: There is no such device.
        ValueError, TypeError: The count is negative, or no int.
    """
    if isinstance(count, bool):
        raise TypeError("a number of virtual functions is an int, not a bool")
    count = operator.index(count)
    if count < 0:
        raise ValueError(f"a device has no {count} virtual functions")
    device = as_device(device)
    now = vfs_of(device)
    if count > now.total:
        what = f"has {now.total} virtual functions at most" if now.total else "has no SR-IOV: no virtual functions"
        raise ClaimError(f"{device.name} {what}")
    # The kernel refuses to change one nonzero count to another (EBUSY): set 0 first.
    counts = [] if now.count == count else [str(count)] if not now.count or not count else ["0", str(count)]
    return tuple(device_step(device, Action.SET_VFS, value) for value in counts)


def vfs_refusals(device: HostDevice | str | Path, count: int, *, force: Collection[str] = ()) -> tuple[Refusal, ...]:
    """Why `set_vfs` would refuse: what the host, a process or a claim does with functions that would go away.

    Where some would go away, a claim of the device itself that another process holds is a reason as well. A kept claim
    and one of this process are none: they give the device back with what it had before, whatever it has by then.

    Raises:
        ClaimError: The device cannot have so many.
        DeviceNotFoundError: There is no such device.
        ValueError, TypeError: The count is negative, or no int; or ``force`` names a kind that cannot be forced.
    """
    return vfs_refusals_by(MachineSnapshot(thorough=True), device, count, force=force)


def vfs_refusals_by(
    snapshot: MachineSnapshot, device: HostDevice | str | Path, count: int, *, force: Collection[str] = ()
) -> tuple[Refusal, ...]:
    """The same, by a look at the machine that others go by as well.

    Raises:
        ClaimError, DeviceNotFoundError, ValueError, TypeError: As for `vfs_refusals`.
    """
    kinds = uses.forced(force)
    device = as_device(device)
    functions = vfs_of(device).devices if vfs_steps(device, count) else ()
    found = list(uses.refusals_by(snapshot, functions))
    if functions:
        found += holder_refusals(functions, snapshot.processes)
    return (
        *claimed_refusals([device.name] if functions else (), but=journal.is_own),
        *claimed_refusals([one.name for one in functions]),
        *(refusal for refusal in found if refusal.kind not in kinds),
    )


def set_vfs(
    device: HostDevice | str | Path,
    count: int,
    *,
    force: Collection[str] = (),
    report: Report | None = None,
) -> VFs:
    """Set the number of virtual functions of a physical function.

    Those that it has go away first, unless it is that many already. If a step fails, the previous ones are restored.

    Args:
        device: The physical function.
        count: How many.
        force: The kinds of refusals to override, as of `plan_claim`.
        report: Called with each step before it is taken.

    Returns:
        Those that it has then.

    Raises:
        ClaimRefusedError: The host, a process or a claim uses one of the virtual functions that would go away, or
            another process's claim has the device that they would be taken from.
        ClaimError: The device cannot have so many, its driver makes none, or the caller is not root.
        DeviceNotFoundError: There is no such device.
        ValueError, TypeError: The count is negative, or no int; or ``force`` names a kind that cannot be forced.
    """
    device = as_device(device)
    with exclusive_access() as access:
        steps = vfs_steps(device, count)
        if refusals := vfs_refusals(device, count, force=force):
            raise ClaimRefusedError(refusals, f"the change of {device.name}'s virtual functions")
        if steps:
            work = Transaction(access, ClaimRecord.begin(), report, force=force)
            work.carry_out(steps, f"setting the number of virtual functions of {device.name}")
    return vfs_of(device)
