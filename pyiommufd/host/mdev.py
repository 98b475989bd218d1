"""Mediated devices: the types that parents offer, and how devices of these are made and removed (sysfs)."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from pyiommufd.errors import (
    Cause,
    ClaimError,
    ClaimRefusedError,
    DeviceNotFoundError,
    Fix,
    IoctlError,
    NotFoundError,
    Refusal,
    ioctl_error,
)
from pyiommufd.host import sysfs, uses
from pyiommufd.host.claims.perform import wait_for_node
from pyiommufd.host.claims.refusals import claimed_refusals, holder_refusals
from pyiommufd.host.claims.transaction import exclusive_access
from pyiommufd.host.discovery.devices import HostDevice, as_device, from_sys_path
from pyiommufd.host.holders import holders
from pyiommufd.host.rows import Row, Rows
from pyiommufd.host.uses.snapshot import MachineSnapshot
from pyiommufd.host.worker import StuckError, Worker
from pyiommufd.nearest import did_you_mean
from pyiommufd.printable import OneLine, printable

_CREATE, _REMOVE = "mdev create", "mdev remove"
_TYPES = "mdev_supported_types"

_FULL = Row(
    "the parent has no room for another device of this type",
    Fix("take another type, or remove_mdev() one of the parent's devices",
        "take another type, or pyiommufd mdev remove one of the parent's devices"),
)  # fmt: skip

MDEV: Rows = {
    (_CREATE, errno.EEXIST): (
        Row("there is a mediated device of this UUID, of this parent or another",
            Fix("use it, or leave the UUID out for a new one", "use it, or leave --uuid out for a new one")),
    ),
    (_CREATE, errno.ENOSPC): (_FULL,),
    (_CREATE, errno.EUSERS): (_FULL,),
    (_CREATE, errno.ENODEV): (Row("the parent is leaving its driver", "look at the parent anew"),),
    (_REMOVE, errno.EAGAIN): (Row("the device is being created or removed at this moment", "look at it anew"),),
    (_REMOVE, errno.ENODEV): (Row("the device, or its parent, is being removed", "look at it anew"),),
}  # fmt: skip
"""Why the kernel refuses to make or remove a mediated device (Linux 7.3, drivers/vfio/mdev)."""


@dataclass(frozen=True, slots=True, repr=False)
class MdevType(OneLine):
    """A type of mediated device that a parent offers, as it was when it was looked at.

    Attributes:
        parent: The device whose driver makes devices of this type: a PCI function, or one that is on no bus.
        id: What the kernel calls it, such as ``i915-GVTg_V5_4``.
        name: The driver's name for it, for people.
        description: What the driver says of it, with its newlines; empty: nothing.
        device_api: The interface of its devices: ``vfio-pci``, ``vfio-ccw`` or ``vfio-ap``.
        available: How many more can be made as things are. Types of one parent may share what they are made from.
        devices: Those that there are.
    """

    parent: HostDevice
    id: str
    name: str = field(compare=False)
    description: str = field(compare=False)
    device_api: str = field(compare=False)
    available: int = field(compare=False)
    devices: tuple[HostDevice, ...] = field(compare=False)

    def _line(self) -> str:
        return f"{self.id} of {self.parent.name}: {len(self.devices)}, and {self.available} available"


def mdev_types(parent: HostDevice | str | Path | None = None) -> tuple[MdevType, ...]:
    """The types of mediated devices that this machine's devices offer, ordered by parent and id.

    Args:
        parent: Only those of this one: its name below ``/sys/class/mdev_bus``, or what `find_device` takes.

    Raises:
        DeviceNotFoundError: There is no such device, or it is no parent of mediated devices.
    """
    folders = _parents() if parent is None else [_parent(parent)]
    return tuple(kind for folder in folders for kind in _types(folder))


def mdev_type(device: HostDevice) -> MdevType | None:
    """The type of a mediated device; None where it is none, or is gone."""
    folder = device.sys_path / "mdev_type"
    return _read_type(folder.resolve()) if device.is_mediated and folder.exists() else None


def find_mdev_type(parent: HostDevice | str | Path, type_id: str) -> MdevType:
    """A type of mediated device of a parent.

    Args:
        parent: As for `mdev_types`.
        type_id: What the kernel calls it.

    Raises:
        DeviceNotFoundError: There is no such device, it is no parent of mediated devices, or has no such type.
        NotFoundError: Nothing on this machine is such a parent.
        TypeError: The id is no str.
    """
    if not isinstance(type_id, str):
        raise TypeError(f"a type is named by its id, a str such as 'mtty-1', not by {type(type_id).__name__}")
    if not _parents():
        raise _no_parent()
    folder = _parent(parent)
    found = {kind.id: kind for kind in _types(folder)}
    if type_id not in found:
        near = did_you_mean(type_id, list(found))
        raise DeviceNotFoundError(f"{folder.name} has no type {type_id!r}; it has {', '.join(found) or 'none'}{near}")
    return found[type_id]


def check_mdev(parent: HostDevice | str | Path, type_id: str, uuid: UUID | str | None = None) -> MdevType:
    """The type of which `create_mdev` would make a device; what the kernel would refuse, it refuses. Changes nothing.

    Raises:
        IoctlError, DeviceNotFoundError, NotFoundError, ValueError, TypeError: As `create_mdev`.
    """
    kind, name = find_mdev_type(parent, type_id), new_uuid(uuid)
    if (sysfs.SYS / "bus/mdev/devices" / str(name)).exists():
        raise _refused(_CREATE, errno.EEXIST, f"{name}, {kind.id} of {kind.parent.name}")
    if not kind.available:
        raise _refused(_CREATE, errno.ENOSPC, f"{kind.id} of {kind.parent.name}")
    return kind


def check_root(target: MdevType | HostDevice) -> None:
    """Refuse who may not make a device of this type, or remove this device.

    Raises:
        ClaimError: It takes root.
        DeviceNotFoundError: The device is no mediated one.
    """
    if isinstance(target, MdevType):
        what, file = "making mediated devices", target.parent.sys_path / _TYPES / target.id / "create"
    else:
        what, file = "removing mediated devices", _mediated(target).sys_path / "remove"
    if file.exists() and not os.access(file, os.W_OK, effective_ids=True):
        raise ClaimError(f"{what} takes root: {file} cannot be written")


def create_mdev(parent: HostDevice | str | Path, type_id: str, uuid: UUID | str | None = None) -> HostDevice:
    """Make a mediated device, which is on a vfio driver at once: it is bound without a claim.

    It lasts until it is removed, its parent leaves its driver, or the machine is started anew.

    Args:
        parent: As for `mdev_types`.
        type_id: The `MdevType.id`.
        uuid: What it is called; None: one that nothing else has.

    Raises:
        IoctlError: The kernel refused: EEXIST for the UUID of another one, ENOSPC or EUSERS where the parent has no
            room left.
        DeviceNotFoundError, NotFoundError: As for `find_mdev_type`.
        ClaimError: The caller is not root, or the parent's driver has not answered in time.
        ValueError, TypeError: The UUID is none.
    """
    name = str(new_uuid(uuid))
    kind = find_mdev_type(parent, type_id)
    check_root(kind)
    with exclusive_access() as access:
        try:
            access.worker.write(kind.parent.sys_path / _TYPES / type_id / "create", f"{name}\n")
        except StuckError as error:
            raise ClaimError(f"{kind.parent.name} has not made {name}: {error}") from None
        except OSError as error:
            raise _refused(_CREATE, error.errno or 0, f"{name}, {type_id} of {kind.parent.name}") from None
    device = from_sys_path(sysfs.SYS / "bus/mdev/devices" / name)
    wait_for_node(device.sys_path)
    return device


def remove_mdev(device: HostDevice | str | Path, *, force: Collection[str] = ()) -> None:
    """Remove a mediated device.

    Args:
        device: The device: a `HostDevice`, its UUID, or the path of its node.
        force: The kinds of refusals to override: with ``held``, its users are asked to close it where its driver can
            ask, and are waited for.

    Raises:
        ClaimRefusedError: `mdev_refusals` has something.
        ClaimError: It has not gone in time, as something still uses it; it goes when that has ended. Or the caller
            is not root.
        IoctlError: The kernel refused.
        DeviceNotFoundError: There is no such device, or it is no mediated one.
        ValueError: ``force`` names a kind that cannot be forced.
    """
    device = _mediated(device)
    check_root(device)
    # A worker without the lock: others may claim and release while this one still waits for a user.
    with exclusive_access(), Worker() as worker:
        if refusals := mdev_refusals(device, force=force):
            raise ClaimRefusedError(refusals, f"the removal of {device.name}")
        try:
            worker.write(device.sys_path / "remove", "1\n")
        except StuckError as error:
            held = [Cause(str(holder), fix="the device goes when that is closed") for holder in holders(device)]
            raise ClaimError(f"{device.name} is not removed yet: {error}", *held) from None
        except OSError as error:
            raise _refused(_REMOVE, error.errno or 0, device.name) from None


def mdev_refusals(device: HostDevice | str | Path, *, force: Collection[str] = ()) -> tuple[Refusal, ...]:
    """Why `remove_mdev` would refuse: who has it open, since the removal would block until they close it; claims.

    Where it cannot be seen from here whether anybody has, that is one, too (``unseen``).

    Raises:
        DeviceNotFoundError: There is no such device, or it is no mediated one.
        ValueError: ``force`` names a kind that cannot be forced.
    """
    kinds = uses.forced(force)
    device = _mediated(device)
    snapshot = MachineSnapshot(thorough=True)
    found = [*uses.refusals_by(snapshot, [device]), *holder_refusals([device], snapshot.processes)]
    return (*claimed_refusals([device.name]), *(refusal for refusal in found if refusal.kind not in kinds))


def new_uuid(uuid: UUID | str | None) -> UUID:
    """The UUID that a caller gives, or a new one.

    Raises:
        ValueError, TypeError: It is none.
    """
    if uuid is None or isinstance(uuid, UUID):
        return uuid or uuid4()
    if not isinstance(uuid, str):
        raise TypeError(f"a UUID is a UUID or a str, not {type(uuid).__name__}")
    try:
        return UUID(uuid)
    except ValueError:
        raise ValueError(f"{uuid!r} is not a UUID, which a mediated device's name has to be") from None


def _mediated(device: HostDevice | str | Path) -> HostDevice:
    device = as_device(device)
    if not device.is_mediated:
        raise DeviceNotFoundError(f"{device.name} is a device of the bus {device.subsystem}, and no mediated one")
    return device


def _refused(request: str, code: int, target: str) -> IoctlError:
    causes = tuple(row.general for row in MDEV.get((request, code), ()))
    # Of EEXIST the exception is otherwise one about mappings.
    return (IoctlError if code == errno.EEXIST else ioctl_error)(request, code, target, causes)


def _parents() -> list[Path]:
    """The folders of the devices that are parents."""
    return sorted(link.resolve() for link in (sysfs.SYS / "class/mdev_bus").glob("*"))


def _no_parent() -> NotFoundError:
    cause = Cause(
        "no driver here makes mediated devices",
        f"{sysfs.SYS / 'class/mdev_bus'} is empty or not there",
        "load the driver of a parent with what it takes to make them, such as modprobe kvmgt and i915.enable_gvt=1",
    )
    return NotFoundError("open", errno.ENOENT, f"{sysfs.SYS / 'class/mdev_bus'}", (cause,))


def _parent(parent: HostDevice | str | Path) -> Path:
    """The folder of a parent.

    Raises:
        DeviceNotFoundError: There is none of that name.
    """
    text = str(parent.sys_path if isinstance(parent, HostDevice) else parent)
    known = _parents()
    for folder in known:
        # What is on no bus, find_device does not know.
        if text == folder.name or ("/" in text and Path(text).resolve() == folder):
            return folder
    names = ", ".join(folder.name for folder in known)
    try:
        device = as_device(parent)
    except DeviceNotFoundError as error:
        if error.is_unknown:
            raise DeviceNotFoundError(
                f"there is no parent {printable(text)}; those of mediated devices: {names}"
            ) from None
        raise
    if device.sys_path not in known:
        raise DeviceNotFoundError(f"{device.name} makes no mediated devices; parents here: {names or 'none'}")
    return device.sys_path


def _types(folder: Path) -> Iterator[MdevType]:
    for path in sorted((folder / _TYPES).glob("*")):
        if (kind := _read_type(path)) is not None:
            yield kind


def _read_type(folder: Path) -> MdevType | None:
    """The type that has this folder; None where it is gone."""
    devices = []
    try:
        parent = from_sys_path(folder.parent.parent)
        for link in sorted(folder.glob("devices/*")):
            devices.append(from_sys_path(link.resolve()))
    except DeviceNotFoundError:
        return None
    available = sysfs.number(folder / "available_instances")
    if available is None:
        return None
    return MdevType(
        parent=parent,
        id=folder.name,
        name=sysfs.read(folder / "name") or folder.name,
        description=sysfs.read(folder / "description") or "",
        device_api=sysfs.read(folder / "device_api") or "",
        available=available,
        devices=tuple(devices),
    )
