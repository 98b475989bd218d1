"""The iommufd: a security context that owns devices and address spaces."""

from __future__ import annotations

import errno
import os
from _thread import RLock  # as in pyiommufd.kernel.objects

from pyiommufd import diagnose, uapi
from pyiommufd.closing import call_each
from pyiommufd.errors import (
    BusyError,
    ClosedError,
    CloseError,
    DeviceNotFoundError,
    InUseError,
    IoctlError,
    ioctl_error,
)
from pyiommufd.kernel.handle import Handle, character_device, check_unowned, owners
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.objects import Context
from pyiommufd.light_typing import TYPE_CHECKING
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.device.device_file import DeviceFile
    from pyiommufd.kernel.memory.ioas import IOAS
    from pyiommufd.kernel.pagetables.fault_queue import FaultQueue

_STAYS = "it stays in the kernel, with nothing that this process has mapped, until the iommufd's last fd is closed"
_LEFT = f"{_STAYS}; to have it go, detach() before the close what others have, which ends its DMA for all"


class IOMMUFD(Handle):
    """An open ``/dev/iommu``: it owns the devices bound to it and the address spaces made from it.

    A context manager; leaving it closes everything that it owns.

    Thread safety: everything here may be used from any thread.

    Args:
        path: The device node.

    Raises:
        IoctlError: The node is not there (`NotFoundError`) or may not be opened (`AccessDeniedError`); `causes` says
            why and what to do.
        ValueError, TypeError: It is the node of something else, or no path.
    """

    __slots__ = ("_closing", "_context", "_number", "_registry")

    def __init__(self, path: str | os.PathLike[str] = "/dev/iommu") -> None:
        node = os.fsdecode(path)  # a TypeError for what is no path
        self._prepare()
        try:
            self._open_with(self._open, node)
        except IoctlError as error:
            if error.request != "open":
                raise
            code = error.errno or 0
            raise ioctl_error("open", code, node, diagnose.open_iommufd_causes(code, node)) from None

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over the fd of an iommufd that another process or part of the program has opened.

        The fd is this object's from then on, and is closed with it. Where this fails it stays the caller's. What
        other processes did with the iommufd is not known here: `Device.preview_attach` and `DMAChange` say ``unknown``
        where it matters. What this process did with it by another object is.

        Close it: what it has bound is held by the other objects on the same iommufd as well, as long as they are open.

        Raises:
            ValueError, TypeError: It is not the fd of an iommufd; or it is that of a living object of this process, as
                ``fileno`` returns it: give a copy, ``os.dup(fd)``.
            IoctlError: It is not open.
        """
        _import_what_it_makes()
        fd, number = character_device(fd)
        _check_iommufd(number, f"fd {fd}")
        check_unowned(fd)
        self = cls.__new__(cls)
        self._prepare()
        self._context = Context.for_iommufd(self, fd)
        self._context.shared = True
        self._file.fd = self._number = fd
        return self

    def _open(self, file: ioctls.File, node: str) -> None:
        ioctls.file_open(file, node, os.O_RDWR)
        _import_what_it_makes()
        self._number = file.fd
        _check_iommufd(character_device(file.fd)[1], node)
        self._context = Context.for_iommufd(self, file.fd)

    def _prepare(self) -> None:
        super().__init__()
        # In the order in which they were made: each after all that it uses.
        self._registry: dict[Device | KernelObject, None] = {}
        self._closing = False

    def fileno(self) -> int:
        """The file descriptor. Whoever has it can do anything with the iommufd: from now on it is `shared`.

        Raises:
            ClosedError: It has been closed.
            ForkedError: This is a forked child.
        """
        self._context.shared = True
        return super().fileno()

    def _what(self) -> str:
        return f"{type(self).__name__} of fd {self._number}"

    @property
    def _lock(self) -> RLock:
        """See "Locks" in CONTRIBUTING.md."""
        return self._context.lock

    # Create

    def bind(
        self, target: DeviceFile | HostDevice | str | Path, *, token: uuid.UUID | str | bytes | None = None
    ) -> Device:
        """Bind a device (VFIO_DEVICE_BIND_IOMMUFD).

        The first bind of an IOMMU group blocks the DMA of *every member*; `Device.bind_change` names them. Bus
        mastering is off afterwards: see `Device.bus_master`.

        Args:
            target: A `DeviceFile`, which the device takes over when this succeeds and which stays the caller's when
                it fails; or what `DeviceFile` takes.
            token: The VF token (SR-IOV). A virtual function whose physical function is on a vfio driver takes the one
                that the user of that has set; a physical function sets it so, or, where virtual ones are in use, has to
                give theirs; `Device.set_vf_token`.

        Raises:
            GroupNotViableError: A member of the group is on a host driver; it names them.
            IoctlError: The kernel refused for another reason; `causes` says which.
            DeviceNotFoundError: There is no such device.
            ValueError, TypeError: The token is no UUID, or the target is nothing that can be bound.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        from pathlib import Path

        from pyiommufd.host.discovery.devices import HostDevice
        from pyiommufd.host.discovery.vf_token import as_token
        from pyiommufd.kernel.device.device_file import DeviceFile

        raw = None if token is None else as_token(token).bytes
        self._live()
        if isinstance(target, DeviceFile):
            return self._bind(target, raw)
        if not isinstance(target, HostDevice | str | Path):
            raise TypeError(
                f"bind takes a DeviceFile, a HostDevice, or a name or Path of a device, not {type(target).__name__}"
            )
        file = DeviceFile(target)
        try:
            return self._bind(file, raw)
        finally:
            file.close()  # which the device has taken over where it was bound

    def _bind(self, file: DeviceFile, token: bytes | None) -> Device:
        from pyiommufd.kernel.device.device import Device

        host = file.device
        with self._lock:
            self._live()
            device = Device(self, host)
            device._forks = file._forks  # the fd is the file's
            if file._fd_shared:
                device._mark_fd_shared()
            try:
                # On record before it is bound: an exception from a signal leaves it there until the iommufd is closed.
                self._remember(device)
                ioctls.bind(file._live(), device._c, device._file, token)
            except IoctlError as error:
                file._live()  # raises where it was closed meanwhile
                fd, given = file._live().fd, token is not None
                raise diagnose.bind_error(
                    error.errno or 0, _as_it_is_now(host), fd, token=given, owners=owners(Device)
                ) from None
            finally:
                if device.closed:
                    self._forget(device)
            device._check_bind_change()
            return device

    def alloc_ioas(self) -> IOAS:
        """Make an address space (IOMMU_IOAS_ALLOC).

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.memory.ioas import IOAS

        ioas = IOAS(self)
        ioas._create(ioctls.ioas_alloc)
        return ioas

    def alloc_fault_queue(self) -> FaultQueue:
        """Make a queue for page requests of devices (IOMMU_FAULT_QUEUE_ALLOC; since Linux 6.11).

        Raises:
            UnsupportedError: This kernel has none.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.pagetables.fault_queue import FaultQueue

        queue = FaultQueue(self)
        queue._create(lambda made: ioctls.fault_queue_alloc(made, queue=queue._queue._file))
        return queue

    @property
    def rlimit_mode(self) -> bool:
        """Whether locked memory is accounted to each process, and not to its user (IOMMU_OPTION_RLIMIT_MODE).

        Raises:
            IoctlError: The kernel refused.
            AccessDeniedError: Set without CAP_SYS_RESOURCE in the initial user namespace.
            BusyError: Set after something has been made from this iommufd.
            TypeError: Set to neither True nor False.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        return bool(ioctls.option(self._live(), uapi.IOMMU_OPTION_RLIMIT_MODE))

    @rlimit_mode.setter
    def rlimit_mode(self, on: bool) -> None:
        from pyiommufd.kernel.memory.arguments import check_bool

        try:
            ioctls.option(self._live(), uapi.IOMMU_OPTION_RLIMIT_MODE, int(check_bool(on, "rlimit_mode")))
        except IoctlError as error:
            raise ioctl_error("IOMMU_OPTION", error.errno or 0, "the accounting of locked memory") from None

    @property
    def vfio_ioas(self) -> IOAS | None:
        """The address space that VFIO's container interface works on, for programs that use it with this fd.

        Set, it is that one (IOMMU_VFIO_IOAS); None takes it away, as closing the address space does. The container
        interface makes one of its own where there is none. That one, or one that another process has set, is borrowed:
        it is listed among `objects` once it was asked for here, and its ``close`` does not destroy it.

        Raises:
            IoctlError: The kernel refused.
            TypeError, ValueError: Set to what is no address space of this iommufd.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        with self._lock:
            try:
                ioas_id = ioctls.vfio_ioas(self._live(), uapi.IOMMU_VFIO_IOAS_GET)
            except IoctlError as error:
                if error.errno == errno.ENODEV:
                    return None
                raise
            from pyiommufd.kernel.memory.ioas import IOAS

            known = self._context.object(ioas_id)
            if isinstance(known, IOAS):
                return known
            borrowed = IOAS(self)
            borrowed._borrowed = True
            borrowed._c.id, borrowed._c.state = ioas_id, ioctls.LIVE
            self._remember(borrowed)
            return borrowed

    @vfio_ioas.setter
    def vfio_ioas(self, ioas: IOAS | None) -> None:
        if ioas is None:
            ioctls.vfio_ioas(self._live(), uapi.IOMMU_VFIO_IOAS_CLEAR)
            return
        from pyiommufd.kernel.memory.ioas import IOAS

        if not isinstance(ioas, IOAS):
            raise TypeError(f"the container interface works on an IOAS, not on {type(ioas).__name__}")
        if ioas.iommufd._context is not self._context:
            raise ValueError(f"{ioas!r} belongs to another IOMMUFD")
        ioas._call(ioctls.set_vfio_ioas)

    def change_process(self) -> None:
        """Account what is mapped to this process (IOMMU_IOAS_CHANGE_PROCESS; since Linux 6.14).

        For a process that has got the fd from the one that mapped, after an exec or over a socket: the mappings stay,
        the devices go on, and the pinned memory counts against this process' limit from then on. It concerns all
        address spaces of the iommufd.

        Raises:
            UnsupportedError: This kernel cannot.
            IoctlError: EINVAL: memory is mapped that is not a file's (`IOAS.map_file`); those of this process' mappings
                are named. ENOMEM: it is more than this process may lock.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        try:
            ioctls.ioas_change_process(self._live())
        except IoctlError as error:
            from pyiommufd.kernel.memory.ioas import IOAS

            ioases = [made for made in list(self._registry) if isinstance(made, IOAS)]
            no_file = [f"{mapping!r} of {ioas!r}" for ioas in ioases for mapping in ioas._table.of_no_file()]
            raise diagnose.change_process_error(error.errno or 0, no_file) from None

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that have been bound by this object."""
        return tuple(made for made in list(self._registry) if not (isinstance(made, KernelObject) or made.closed))

    @property
    def shared(self) -> bool:
        """Whether others may do things with it that are not known here.

        It was taken over from elsewhere (`from_fd`), or its fd has been asked for (`fileno`), or that of a device that
        is bound to it; or a device was closed that a forked child may have, too.
        """
        return self._context.shared

    @property
    def objects(self) -> tuple[Device | KernelObject, ...]:
        """What has been made from it by this object and not closed: devices, then the others, the latest first.

        Each before what it uses (`Device.page_tables`, `KernelObject.uses`); the other way round ``users``. What other
        processes have made from a shared iommufd is not known here.
        """
        return (*self.devices, *reversed(self._objects_in_order()))

    # For its objects

    def _objects_in_order(self) -> list[KernelObject]:
        made = [made for made in list(self._registry) if isinstance(made, KernelObject)]
        return [one for one in made if not one._ended()]

    def _users_of(self, made: KernelObject) -> tuple[Device | KernelObject, ...]:
        """What of this process uses an object: devices that are attached to it, objects that were made for it."""
        attached = [device for device in self._context.devices() if made in device.page_tables.values()]
        return (*attached, *(other for other in self._context.objects() if made in other.uses))

    def _remember(self, made: Device | KernelObject) -> None:
        """An object is about to be made."""
        if self._closing:  # and this is a signal handler
            raise ClosedError(f"{self!r} is about to be closed")
        self._registry[made] = None
        if not isinstance(made, KernelObject):
            made._state.members[made] = None

    def _forget(self, made: Device | KernelObject) -> None:
        """An object has not been made, or has been closed."""
        self._registry.pop(made, None)
        if not isinstance(made, KernelObject):
            made._state.forget(made)

    # Close

    def _mark_forked(self) -> None:
        super()._mark_forked()
        if hasattr(self, "_context"):
            self._context.lock = RLock()  # another thread of the parent may have held it
            for made in list(self._registry):
                if isinstance(made, KernelObject):
                    made._mark_forked()

    def close(self) -> None:
        """Close everything that it owns, and the fd. Does nothing the second time.

        In a forked child the child's copies of the fds are closed, and nothing else happens.

        Raises:
            CloseError: Something could not be released; the rest has been. What others use of a shared iommufd, such as
                an address space that another object's device is attached to, stays in the kernel until its last fd is
                closed; this process has nothing mapped there any more.
        """
        if self.in_child:
            for made in list(self._registry):
                made.close()
            self._close_fd()
            return
        errors: list[BaseException] = []

        def attempt(step: Callable[[], None]) -> None:
            try:
                step()
            except CloseError as error:
                errors.extend(error.errors)
            except (OSError, InUseError) as error:
                errors.append(error)

        with self._lock:
            if self.closed:
                return
            # By dependence in the kernel, users first. Devices above all: each holds a reference on the iommufd,
            # so that closing the fd alone would free nothing, and an attached page table cannot be destroyed.
            try:
                self._closing = True
                for made in (*self.devices, *reversed(list(self._registry))):
                    attempt(made.close)
                    if isinstance(made, KernelObject) and not made.closed:
                        # Nobody can close it any more: the kernel frees it with the iommufd.
                        match errors[-1:]:
                            case [InUseError() as error]:
                                errors[-1] = made._in_use(error.users, _STAYS)
                            case [BusyError() as error]:
                                errors[-1] = _stays_error(error)
                        made._release()
                attempt(self._close_fd)
            finally:
                self._closing = False  # after an exception of a signal handler it stays usable
        if errors:
            raise CloseError("the iommufd was closed with errors:", tuple(errors))

    def __del__(self) -> None:
        # The object, its devices and address spaces are finalized in any order. No device, of this or of another
        # process that shares the iommufd, may reach memory that has been released. And the tables of mappings are
        # cleared before the memory is released: CPython 3.11 crashes where it collects a memoryview and what holds it
        # at once (gh-77894, fixed in 2024).
        last_steps = [super().__del__]
        if hasattr(self, "_registry"):
            devices = [] if self.in_child else [device.__del__ for device in self.devices]
            made = [one._finalize for one in reversed(list(self._registry)) if isinstance(one, KernelObject)]
            last_steps = [*devices, *made, *last_steps]
        call_each(iter(last_steps))


def _import_what_it_makes() -> None:
    """Import the classes of what nearly every iommufd makes, before the process may have given up reading files.

    Not with this module: who only names `IOMMUFD`, as a command does, waits for none of them. Those of what few make
    are imported when the first is made.
    """
    from pyiommufd.kernel.device.device import Device  # noqa: F401
    from pyiommufd.kernel.memory.ioas import IOAS  # noqa: F401


def _stays_error(error: BusyError) -> IoctlError:
    """The exception for an object that others use, once the iommufd is closed."""
    try:
        from pyiommufd.causes import Cause
    except (ImportError, OSError):
        return error  # no fd is left, say; the close goes on
    cause = Cause("others use it, or a device that is open elsewhere as well", "", _LEFT)
    return ioctl_error(error.request, error.errno or 0, error.target, (cause,))


def _check_iommufd(number: str, name: str) -> None:
    """Refuse what is not the device node of iommufd, by its number as `character_device` returns it."""
    from pyiommufd.host import sysfs

    if not number or sysfs.read(sysfs.SYS / "class/misc/iommu/dev") != number:
        raise ValueError(f"{name} is not an iommufd: that is /dev/iommu")


def _as_it_is_now(device: HostDevice) -> HostDevice:
    """The device looked up afresh; as it was where it is gone, which may be why the kernel refused."""
    try:
        return device.refreshed()
    except DeviceNotFoundError:
        return device
