"""The iommufd: a security context that owns devices and address spaces."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from .. import uapi
from ..diagnose.bind import bind_error
from ..diagnose.mapping import change_process_error
from ..diagnose.node import open_iommufd_causes
from ..errors import CloseError, DeviceNotFoundError, IoctlError, ioctl_error
from ..host import sysfs
from ..host.devices import HostDevice
from ..host.groups import find_group
from ..uapi import ioctls
from .attachment import Binding, ChangeKind, DMAChange, GroupState
from .device import Device
from .device_file import DeviceFile
from .fault_queue import FaultQueue
from .handle import Handle, character_device
from .hwpt import HWPT
from .ioas import IOAS
from .kernel_object import KernelObject


class IOMMUFD(Handle):
    """An open ``/dev/iommu``: it owns the devices bound to it and the address spaces made from it.

    A context manager; leaving it closes everything that it owns.

    Thread safety: everything here may be used from any thread.

    Args:
        path: The device node.

    Raises:
        IoctlError: The node is not there (`NotFoundError`) or may not be opened (`AccessDeniedError`); `causes` says
            why and what to do.
    """

    __slots__ = ("_devices", "_groups", "_hwpts", "_ioases", "_queues", "_shared", "lock")

    def __init__(self, path: str | os.PathLike[str] = "/dev/iommu") -> None:
        node = os.fsdecode(path)  # a TypeError for what is no path
        try:
            fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or 0
            raise ioctl_error("open", code, node, open_iommufd_causes(code, node)) from None
        try:
            self._take(fd, shared=False)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over the fd of an iommufd that another process or part of the program has opened.

        The fd is this object's from then on, and is closed with it. Where this fails it stays the caller's. What
        others did with the iommufd is not known here: `Device.preview_attach` says ``unknown`` where it matters.

        Raises:
            ValueError, TypeError: It is not the fd of an iommufd.
            IoctlError: It is not open.
        """
        self = cls.__new__(cls)
        self._take(fd, shared=True)
        return self

    def _take(self, fd: int, *, shared: bool) -> None:
        fd, number = character_device(fd)
        if not number or sysfs.read(sysfs.SYS / "class/misc/iommu/dev") != number:
            raise ValueError(f"fd {fd} is not that of an iommufd (/dev/iommu)")
        super().__init__(fd)
        self._devices: dict[Device, None] = {}
        self._ioases: dict[IOAS, None] = {}
        self._hwpts: dict[HWPT, None] = {}
        self._queues: dict[FaultQueue, None] = {}
        # By group id, or by the device's name where no IOMMU covers it.
        self._groups: dict[int | str, GroupState] = {}
        self._shared = shared
        # Held while an action changes who is bound, attached or alive: the kernel's answer and what is recorded
        # of it stay one step. Maps and unmaps do without.
        self.lock = threading.RLock()

    # What it makes

    def bind(
        self, target: DeviceFile | HostDevice | str | Path, *, token: uuid.UUID | str | bytes | None = None
    ) -> Device:
        """Bind a device (VFIO_DEVICE_BIND_IOMMUFD).

        The first bind of an IOMMU group blocks the DMA of *every member*; `Device.bind_change` names them. Bus
        mastering is off afterwards: see `Device.bus_master`.

        Args:
            target: A `DeviceFile`, which the device takes over when this succeeds and which stays the caller's when
                it fails; or what `DeviceFile` takes.
            token: The VF token, for a virtual function whose physical function is on a vfio driver too.

        Raises:
            GroupNotViableError: A member of the group is on a host driver; it names them.
            IoctlError: The kernel refused for another reason; `causes` says which.
            DeviceNotFoundError: There is no such device.
            ValueError, TypeError: The token is no UUID.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        raw = _token_bytes(token)
        iommufd = self.fileno()
        if isinstance(target, DeviceFile):
            return self._bind(target, iommufd, raw)
        file = DeviceFile(target)
        try:
            return self._bind(file, iommufd, raw)
        except BaseException:
            file.close()
            raise

    def _bind(self, file: DeviceFile, iommufd: int, token: bytes | None) -> Device:
        host = file.device
        with self.lock:
            try:
                device_id = ioctls.bind(file.fileno(), iommufd, token)
            except IoctlError as error:
                raise bind_error(error.errno or 0, _as_it_is_now(host), file.fileno()) from None
            state = self._groups.setdefault(_group_key(host), GroupState())
            first = not state.bound and not self._shared
            kind = ChangeKind.FIRST if first else ChangeKind.NOOP
            change = DMAChange(kind, self.members(host) if first else ())
            device = Device(self, Binding(host, device_id, state, change))
            try:
                state.bound.append(device)
                self._devices[device] = None
                device.take_fd(file)
            except BaseException:
                # A signal handler raised. Until the device has the fd, it is the file that keeps it bound.
                if device.closed:
                    self.forget(device)
                raise
            return device

    def alloc_ioas(self) -> IOAS:
        """Make an address space (IOMMU_IOAS_ALLOC).

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        with self.lock:
            ioas = IOAS(self, ioctls.ioas_alloc(self.fileno()), self.fileno())
            self._ioases[ioas] = None
            return ioas

    def alloc_fault_queue(self) -> FaultQueue:
        """Make a queue for page requests of devices (IOMMU_FAULT_QUEUE_ALLOC; since Linux 6.11).

        Raises:
            UnsupportedError: This kernel has none.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        with self.lock:
            queue_id, file = ioctls.fault_queue_alloc(self.fileno())
            queue = FaultQueue(self, queue_id, file)
            self._queues[queue] = None
            return queue

    @property
    def rlimit_mode(self) -> bool:
        """Whether locked memory is accounted to each process, and not to its user (IOMMU_OPTION_RLIMIT_MODE).

        Raises, when set:
            AccessDeniedError: It takes CAP_SYS_RESOURCE in the initial user namespace.
            BusyError: Something has been made from this iommufd already.
        """
        return bool(ioctls.option(self.fileno(), uapi.IOMMU_OPTION_RLIMIT_MODE, 0))

    @rlimit_mode.setter
    def rlimit_mode(self, on: bool) -> None:
        try:
            ioctls.option(self.fileno(), uapi.IOMMU_OPTION_RLIMIT_MODE, 0, int(bool(on)))
        except IoctlError as error:
            raise ioctls.failure("IOMMU_OPTION", "the accounting of locked memory", error.errno) from None

    @property
    def vfio_ioas(self) -> IOAS | None:
        """The address space that VFIO's container interface works on, for programs that use it with this fd.

        Set, it is that one (IOMMU_VFIO_IOAS); None takes it away, as closing the address space does. The container
        interface makes one of its own where there is none; it is listed among `objects` once it was asked for here.

        Raises:
            IoctlError: The kernel refused.
            TypeError, ValueError, when set: That is no address space of this iommufd.
            ClosedError, ForkedError: This iommufd is closed, or belongs to the parent process.
        """
        with self.lock:
            fd = self.fileno()
            try:
                ioas_id = ioctls.vfio_ioas(fd, uapi.IOMMU_VFIO_IOAS_GET)
            except IoctlError as error:
                if error.errno == errno.ENODEV:
                    return None
                raise
            for ioas in self._ioases:
                if ioas.id == ioas_id:
                    return ioas
            ioas = IOAS(self, ioas_id, fd)
            self._ioases[ioas] = None
            return ioas

    @vfio_ioas.setter
    def vfio_ioas(self, ioas: IOAS | None) -> None:
        if ioas is None:
            ioctls.vfio_ioas(self.fileno(), uapi.IOMMU_VFIO_IOAS_CLEAR)
            return
        if not isinstance(ioas, IOAS):
            raise TypeError(f"the container interface works on an IOAS, not on {type(ioas).__name__}")
        fd = ioas.fd()
        if ioas.iommufd is not self:
            raise ValueError(f"{ioas!r} belongs to another IOMMUFD")
        ioctls.vfio_ioas(fd, uapi.IOMMU_VFIO_IOAS_SET, ioas.id)

    @vfio_ioas.deleter
    def vfio_ioas(self) -> None:
        self.vfio_ioas = None

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
            ioctls.ioas_change_process(self.fileno())
        except IoctlError as error:
            of_memory = [f"{mapping!r} of {ioas!r}" for ioas in self._ioases for mapping in ioas.table.of_memory()]
            raise change_process_error(error.errno or 0, of_memory) from None

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that this process has bound to it."""
        return tuple(self._devices)

    @property
    def shared(self) -> bool:
        """Whether it was taken over from elsewhere: other processes may do things with it that are not known here."""
        return self._shared

    @property
    def objects(self) -> tuple[Device | HWPT | FaultQueue | IOAS, ...]:
        """What this process has made from it and not closed: devices, page tables, fault queues, address spaces.

        Each before what it uses: `Device.page_tables`, `HWPT.ioas`, `HWPT.fault_queue`; the other way round ``users``.
        What other processes have made from a shared iommufd is not known here.
        """
        return (*self._devices, *self._hwpts, *self._queues, *self._ioases)

    # What its objects ask of it

    def users_of(self, made: KernelObject) -> tuple[Device | KernelObject, ...]:
        """What of this process uses one of its objects: devices that are attached to it, page tables made for it."""
        attached = tuple(device for device in self._devices if made in device.page_tables.values())
        return (*attached, *(hwpt for hwpt in self._hwpts if made in (hwpt.ioas, hwpt.fault_queue)))

    def hwpts_of(self, ioas: IOAS) -> tuple[HWPT, ...]:
        """The page tables that were made for an address space."""
        return tuple(hwpt for hwpt in self._hwpts if hwpt.ioas is ioas)

    def remember(self, hwpt: HWPT) -> None:
        """A page table has been made."""
        self._hwpts[hwpt] = None

    def members(self, device: HostDevice) -> tuple[HostDevice, ...]:
        """Every member of a device's IOMMU group as it is now; the device alone where it has none."""
        try:
            group = None if device.group_id is None else find_group(device.group_id)
        except DeviceNotFoundError:
            group = None
        return (device,) if group is None else group.devices

    def reserved_hits(self, device: HostDevice, ioas: IOAS) -> list[str]:
        """What is mapped where sysfs says that the device's group must not map, in words.

        An attach checks the same, but for ``direct-relaxable`` regions (Linux 7.3, io_pagetable.c).
        """
        group = device.group
        return [
            f"{ioas.table.words(region.start, region.last - region.start + 1)}, in the reserved region "
            f"{region.start:#x}..{region.last:#x} ({region.type})"
            for region in (group.reserved_regions if group is not None else ())
            if region.type != "direct-relaxable"
            and ioas.table.overlapping(region.start, region.last - region.start + 1)
        ]

    def forget(self, made: Device | KernelObject) -> None:
        """One of its objects has been closed."""
        with self.lock:
            if isinstance(made, IOAS):
                self._ioases.pop(made, None)
            elif isinstance(made, HWPT):
                self._hwpts.pop(made, None)
            elif isinstance(made, FaultQueue):
                self._queues.pop(made, None)
            if isinstance(made, KernelObject):
                return
            self._devices.pop(made, None)
            key = _group_key(made.host)
            state = self._groups.get(key)
            if state is not None and made in state.bound:
                state.bound.remove(made)
                if not state.bound:
                    del self._groups[key]

    # The end

    def mark_forked(self) -> None:
        """This process is a forked child: what was made here is its parent's."""
        super().mark_forked()
        for made in (*self._hwpts, *self._queues, *self._ioases):
            made.mark_forked()

    def close(self) -> None:
        """Close everything that it owns, and the fd. Does nothing the second time.

        In a forked child the child's copies of the fds are closed, and nothing else happens.

        Raises:
            CloseError: Something could not be released; the rest has been.
        """
        if self.closed:
            return
        if self.in_child:
            for device in self._devices:
                device.close()
            for queue in self._queues:
                queue.close()
            self._close_fd()
            return
        errors: list[BaseException] = []

        def attempt(step: Callable[[], None]) -> None:
            try:
                step()
            except (OSError, CloseError) as error:
                errors.extend(error.errors if isinstance(error, CloseError) else (error,))

        with self.lock:
            # By dependence in the kernel, users first. Devices above all: each holds a reference on the iommufd,
            # so that closing the fd alone would free nothing, and an attached page table cannot be destroyed.
            for device in list(self._devices):
                attempt(device.close)
            for made in (*self._hwpts, *self._queues, *self._ioases):
                attempt(made.close)
                if not made.closed:
                    made.mark_closed()  # the fd goes, and the kernel frees it with it
            attempt(self._close_fd)
        if errors:
            raise CloseError("the iommufd was closed with errors:", tuple(errors))

    def __del__(self) -> None:
        super().__del__()
        # What holds the memory of mappings goes before the memory does: CPython 3.11 crashes where it collects
        # a memoryview and what holds it at once (gh-77894, mended in 2024).
        for ioas in getattr(self, "_ioases", ()):
            ioas.table.clear()


def _as_it_is_now(device: HostDevice) -> HostDevice:
    """The device looked up afresh; as it was where it is gone, which may be why the kernel refused."""
    try:
        return device.refreshed()
    except DeviceNotFoundError:
        return device


def _group_key(device: HostDevice) -> int | str:
    return device.name if device.group_id is None else device.group_id


def _token_bytes(token: uuid.UUID | str | bytes | None) -> bytes | None:
    if token is None:
        return None
    if isinstance(token, bytes):
        if len(token) != 16:
            raise ValueError(f"a VF token has 16 bytes, not {len(token)}")
        return token
    if isinstance(token, str):
        token = uuid.UUID(token)
    if not isinstance(token, uuid.UUID):
        raise TypeError(f"a VF token is a UUID, not {type(token).__name__}")
    return token.bytes
