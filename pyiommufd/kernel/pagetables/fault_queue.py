"""Page requests of devices (I/O page faults), to be answered by the program."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

from pyiommufd import uapi
from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.kernel.handle import Deadline, Handle
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.printable import OneLine
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.iommufd import IOMMUFD

_REQUEST = struct.Struct("=6IQ2I")  # struct iommu_hwpt_pgfault
_RESPONSE = struct.Struct("=2I")  # struct iommu_hwpt_page_response
# Requests that one read takes. A group of them comes whole or not at all, also where it is larger than what there is
# room for (Linux 7.3, iommufd_fault_fops_read): then the read takes nothing, and needs more.
_BATCH = 64
_MOST = 1 << 18


class PagePermission(IntFlag):
    """The kinds of access that a device asks for (IOMMU_PGFAULT_PERM_*)."""

    READ = uapi.IOMMU_PGFAULT_PERM_READ
    WRITE = uapi.IOMMU_PGFAULT_PERM_WRITE
    EXEC = uapi.IOMMU_PGFAULT_PERM_EXEC
    PRIVILEGED = uapi.IOMMU_PGFAULT_PERM_PRIV


@dataclass(frozen=True, slots=True, repr=False)
class PageRequest(OneLine):
    """A device's request for a page (struct iommu_hwpt_pgfault). Read from a `FaultQueue`.

    Attributes:
        device: The device; None where this process has not bound it.
        pasid: The PASID of its access; None: without one.
        group: The number of its group of requests, by the device; they are answered together.
        permissions: The kinds of access that it asks for.
        address: The address that it wants to access.
        length: Bytes that it may want from there on; 0 where it does not say.
        last: Whether it is the last one of its group: the group can be answered now.
        cookie: The kernel's number of the group.
    """

    device: Device | None
    pasid: int | None
    group: int
    permissions: PagePermission
    address: int
    length: int
    last: bool
    cookie: int

    def _line(self) -> str:
        who = "an unknown device" if self.device is None else self.device.name
        pasid = "" if self.pasid is None else f", PASID {self.pasid}"
        what = self.permissions.name or "nothing"
        return f"of {who}{pasid}: {what} at {self.address:#x}, group {self.group}{', the last' if self.last else ''}"


class _Batch:
    """The requests returned by one read of the kernel's queue.

    The C call stores the length, and one atomic step takes a request out: a signal handler that reads as well loses no
    request and gets none twice.

    Attributes:
        memory: Room for requests.
        length: Bytes that have been read; 0 until then.
    """

    __slots__ = ("_devices", "_offsets", "length", "memory")

    def __init__(self, room: int, devices: dict[int, Device]) -> None:
        self.memory = bytearray(room * _REQUEST.size)
        self.length = ioctls.new_cell("uint64_t")
        self._offsets = itertools.count(0, _REQUEST.size)
        self._devices = devices  # by the ids that they have now

    def take(self) -> PageRequest | None:
        """The next one; None: there are no more, or none yet."""
        if not self.length[0] or (offset := next(self._offsets)) >= self.length[0]:
            return None
        flags, device, pasid, group, permissions, _, address, length, cookie = _REQUEST.unpack_from(self.memory, offset)
        return PageRequest(
            device=self._devices.get(device),
            pasid=pasid if flags & uapi.IOMMU_PGFAULT_FLAGS_PASID_VALID else None,
            group=group,
            permissions=PagePermission(permissions),
            address=address,
            length=length,
            last=bool(flags & uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE),
            cookie=cookie,
        )


class FaultQueue(KernelObject):
    """A queue of page requests of devices (IOMMU_FAULT_QUEUE_ALLOC; since Linux 6.11).

    Made by `IOMMUFD.alloc_fault_queue`, and given to page tables by ``Device.alloc_hwpt(…, fault_queue=)``. A device
    that waits for a page waits until it is answered; what is not is refused by the kernel when the queue is closed.

    Thread safety: everything here may be used from any thread; a request is read by one of them.
    """

    __slots__ = ("_batches", "_queue")

    def __init__(self, iommufd: IOMMUFD) -> None:
        super().__init__(iommufd)
        self._queue = _QueueFile(self)
        # What has been read and not all handed out: the kernel has forgotten it.
        self._batches: dict[_Batch, None] = {}

    def fileno(self) -> int:
        """The queue's own fd: readable when there is a request.

        Raises:
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        return self._queue.fileno()

    def read(self, timeout: float | None = None) -> PageRequest:
        """The next request; other threads run meanwhile.

        Args:
            timeout: Seconds to wait for one; None: as long as it takes.

        Raises:
            TimeoutError: None has come.
            ClosedError, ForkedError: As for `fileno`; also when it is closed meanwhile.
        """
        deadline = Deadline(timeout)
        while True:
            file = self._queue._live()
            with self._iommufd._lock:
                request = self._next()
                if request is None:
                    self._fetch(file)
                    request = self._next()  # also what a signal handler has fetched, and left
            if request is not None:
                return request
            if not deadline.wait(file):
                raise TimeoutError(f"no page request of {self!r} within {timeout:g} s")

    def _fetch(self, file: ioctls.File) -> None:
        """Take what the kernel has: as many whole groups as there is room for, or one of any size."""
        devices = {device.id: device for device in self._iommufd._context.devices()}
        room = _BATCH
        while True:
            batch = _Batch(room, devices)
            try:
                self._batches[batch] = None
                ioctls.file_readinto(file, batch.memory, batch.length)
            except IoctlError:
                self._queue._live()  # raises where it was closed meanwhile
                raise
            finally:
                if not batch.length[0]:
                    self._batches.pop(batch, None)
            if batch.length[0] or room >= _MOST or not ioctls.file_readable(file):
                return
            room *= 8

    def _next(self) -> PageRequest | None:
        """Hand out one of those that have been read."""
        for batch in list(self._batches):
            request = batch.take()
            if request is not None:
                return request
            if batch.length[0]:
                self._batches.pop(batch, None)
        return None

    def respond(self, request: PageRequest, *, success: bool = True) -> None:
        """Answer a group of requests, by any one of it (struct iommu_hwpt_page_response).

        Args:
            request: The request.
            success: The pages are there now: the device tries again. Otherwise it is told that there are none.

        Raises:
            IoctlError: EINVAL: it has been answered already.
            TypeError: That is no request.
            ClosedError, ForkedError: As for `fileno`.
        """
        if not isinstance(request, PageRequest):
            raise TypeError(f"what is answered is a PageRequest, not {type(request).__name__}")
        code = uapi.IOMMUFD_PAGE_RESP_SUCCESS if success else uapi.IOMMUFD_PAGE_RESP_INVALID
        try:
            ioctls.file_write(self._queue._live(), _RESPONSE.pack(request.cookie, code))
        except IoctlError as error:
            self._queue._live()
            raise ioctl_error("write", error.errno or 0, f"the answer to {request}") from None

    def close(self) -> None:
        """Close the queue's fd, and destroy it (IOMMU_DESTROY). Does nothing the second time.

        Those who wait for a request get `ClosedError`. In a forked child the child's copy of the fd is closed, and
        nothing else.

        Raises:
            InUseError: A page table uses it; nothing has been closed.
            BusyError: Something that this process does not know of uses it.
        """
        if self._iommufd.in_child:
            self._queue.close()
            return
        super().close()

    def _destroy(self) -> None:
        # The kernel destroys no queue whose fd is open.
        self._queue.close()
        super()._destroy()

    def _release(self) -> None:
        self._queue.close()
        super()._release()


class _QueueFile(Handle):
    """The fd of a fault queue."""

    __slots__ = ("_owner",)

    def __init__(self, owner: FaultQueue) -> None:
        super().__init__()
        self._owner = owner

    def _what(self) -> str:
        return f"FaultQueue {self._owner.id}"

    def __repr__(self) -> str:
        return repr(self._owner)
