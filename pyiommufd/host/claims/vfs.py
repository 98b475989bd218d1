"""Virtual functions: how many a physical function has, and having it have another number of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import ClaimError, ClaimRefusedError, DeviceNotFoundError, Refusal
from pyiommufd.host import sysfs, uses
from pyiommufd.host.claims.record import ClaimRecord
from pyiommufd.host.claims.restore import virtual_functions
from pyiommufd.host.claims.steps import Action, Report, Step, device_step
from pyiommufd.host.discovery.devices import HostDevice, as_device, from_sys_path
from pyiommufd.printable import OneLine, listed


@dataclass(frozen=True, slots=True, repr=False)
class VFs(OneLine):
    """The virtual functions of a device, as they were when it was looked at.

    Attributes:
        total: How many it can have; 0: it has no SR-IOV.
        count: How many it has.
        devices: Those, in the order of their numbers.
    """

    total: int
    count: int
    devices: tuple[HostDevice, ...]

    def _line(self) -> str:
        return f"{self.count} of {self.total}{f': {listed(self.devices)}' if self.devices else ''}"


def vfs_of(device: HostDevice | str | Path) -> VFs:
    """The virtual functions of a device.

    Raises:
        DeviceNotFoundError: There is no such device.
    """
    device = device if isinstance(device, HostDevice) else as_device(device)
    total = sysfs.read(device.sys_path / "sriov_totalvfs")
    if total is None:
        return VFs(0, 0, ())
    # Not by sriov_numvfs, which cannot be read while somebody sets it, and may hang in that.
    found = []
    for path in virtual_functions(device.sys_path):
        try:
            found.append(from_sys_path(path))
        except DeviceNotFoundError:
            continue  # gone since
    return VFs(int(total), len(found), tuple(found))


def vfs_steps(device: HostDevice | str | Path, count: int) -> tuple[Step, ...]:
    """The steps of `set_vfs`; none where the device has that many.

    Raises:
        ClaimError: The device cannot have so many.
        DeviceNotFoundError: There is no such device.
        ValueError: The count is negative.
    """
    if count < 0:
        raise ValueError(f"a device has no {count} virtual functions")
    device = as_device(device)
    now = vfs_of(device)
    if count > now.total:
        what = f"has {now.total} virtual functions at most" if now.total else "has no SR-IOV: no virtual functions"
        raise ClaimError(f"{device.name} {what}")
    # From one number to another the kernel wants them gone in between: EBUSY.
    counts = [] if now.count == count else [str(count)] if not now.count or not count else ["0", str(count)]
    return tuple(device_step(device, Action.SET_VFS, value) for value in counts)


def vfs_refusals(device: HostDevice | str | Path, count: int, *, force: Collection[str] = ()) -> tuple[Refusal, ...]:
    """Why `set_vfs` would refuse: what the host, a process or a claim does with functions that would go away.

    Where some would go away, a claim of the device itself is a reason as well. It is none against making the first
    ones: that is how a device that was claimed gets any, from vfio-pci.

    Raises:
        ClaimError: The device cannot have so many.
        DeviceNotFoundError: There is no such device.
        ValueError: The count is negative, or ``force`` names a kind that cannot be forced.
    """
    from pyiommufd.host.claims.plan import claimed, held

    kinds = uses.forced(force)
    device = as_device(device)
    functions = vfs_of(device).devices if vfs_steps(device, count) else ()
    found = [*uses.refusals(*functions), *held(functions)]
    return (
        *claimed([one.name for one in (device, *functions)] if functions else ()),
        *(refusal for refusal in found if refusal.kind not in kinds),
    )


def set_vfs(
    device: HostDevice | str | Path,
    count: int,
    *,
    force: Collection[str] = (),
    report: Report | None = None,
) -> VFs:
    """Have a physical function have this many virtual functions.

    Those that it has go away first, unless it is that many already. Where a step fails, it has those of before again.

    Args:
        device: The physical function.
        count: How many.
        force: The kinds of refusals to go ahead in spite of, as of `plan_claim`.
        report: Called with each step before it is taken.

    Returns:
        Those that it has then.

    Raises:
        ClaimRefusedError: The host, a process or a claim uses one of the virtual functions that would go away, or a
            claim has the device that they would be taken from.
        ClaimError: The device cannot have so many, its driver makes none, or the caller is not root.
        DeviceNotFoundError: There is no such device.
        ValueError: The count is negative, or ``force`` names a kind that cannot be forced.
    """
    # Here, as a plan looks at virtual functions as well.
    from pyiommufd.host.claims.transaction import Transaction, exclusive

    device = as_device(device)
    with exclusive() as mine:
        steps = vfs_steps(device, count)
        if refusals := vfs_refusals(device, count, force=force):
            raise ClaimRefusedError(refusals, f"the change of {device.name}'s virtual functions")
        if steps:
            work = Transaction(mine, ClaimRecord.begin(), report, force=force)
            work.carry_out(steps, f"setting the number of virtual functions of {device.name}")
    return vfs_of(device)
