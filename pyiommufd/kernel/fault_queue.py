"""Page requests of devices (I/O page faults), to be answered by the program."""

from __future__ import annotations

import os
import select
import struct
import time
import warnings
from collections import deque
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

from .. import uapi
from ..errors import ClosedError, ioctl_error
from .handle import forked_error
from .kernel_object import KernelObject

if TYPE_CHECKING:
    from .attachable import Attachable
    from .iommufd import IOMMUFD

_REQUEST = struct.Struct("=6IQ2I")  # struct iommu_hwpt_pgfault
_RESPONSE = struct.Struct("=2I")  # struct iommu_hwpt_page_response
_BATCH = 64  # requests that one read takes; a group of requests comes whole or not at all


class PagePermission(IntFlag):
    """What a device wants to do with a page."""

    READ = uapi.IOMMU_PGFAULT_PERM_READ
    WRITE = uapi.IOMMU_PGFAULT_PERM_WRITE
    EXEC = uapi.IOMMU_PGFAULT_PERM_EXEC
    PRIVILEGED = uapi.IOMMU_PGFAULT_PERM_PRIV


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A device asks for a page (struct iommu_hwpt_pgfault).

    Attributes:
        device: Which; None where this process has not bound it.
        pasid: With which PASID; None: without one.
        group: The number of its group of requests, by the device; they are answered together.
        permissions: What it wants to do there.
        address: Where.
        length: Bytes that it may want from there on; 0 where it does not say.
        last: Whether it is the last one of its group: the group can be answered now.
        cookie: What the kernel knows the group by.
    """

    device: Attachable | None
    pasid: int | None
    group: int
    permissions: PagePermission
    address: int
    length: int
    last: bool
    cookie: int


class FaultQueue(KernelObject):
    """Where page requests of devices arrive (IOMMU_FAULT_QUEUE_ALLOC; since Linux 6.11).

    Made by `IOMMUFD.alloc_fault_queue`, and given to page tables by ``Device.alloc_hwpt(…, fault_queue=)``. A device
    that waits for a page waits until it is answered; what is not is refused by the kernel when the queue is closed.

    Thread safety: everything here may be used from any thread; a request is read by one of them.
    """

    __slots__ = ("_file", "_read")

    def __init__(self, iommufd: IOMMUFD, queue_id: int, file: int) -> None:
        super().__init__(iommufd, queue_id, iommufd.fileno())
        self._file: int | None = file
        self._read: deque[PageRequest] = deque()

    def fileno(self) -> int:
        """The queue's own fd: readable when there is a request.

        Raises:
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        if self._file is None:
            raise ClosedError(f"this {self!r} is closed")
        if self._iommufd.in_child:
            raise forked_error(f"this {type(self).__name__}", self._iommufd.pid)
        return self._file

    def read(self, timeout: float | None = None) -> PageRequest:
        """The next request; other threads run meanwhile.

        Args:
            timeout: Seconds to wait for one; None: as long as it takes.

        Raises:
            TimeoutError: None has come.
            ClosedError, ForkedError: As for `fileno`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        while True:
            try:
                return self._read.popleft()
            except IndexError:
                pass
            if self._fetch():
                continue
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no page request of {self!r} within {timeout:g} s")
            poll.poll(None if left is None else min(int(left * 1000) + 1, 1 << 30))

    def _fetch(self) -> bool:
        """Take what the kernel has. Returns whether it had something."""
        with self._iommufd.lock:
            devices = {device.id: device for device in self._iommufd.devices}
            data = os.read(self.fileno(), _BATCH * _REQUEST.size)
            for flags, device, pasid, group, permissions, _, address, length, cookie in _REQUEST.iter_unpack(data):
                self._read.append(
                    PageRequest(
                        device=devices.get(device),
                        pasid=pasid if flags & uapi.IOMMU_PGFAULT_FLAGS_PASID_VALID else None,
                        group=group,
                        permissions=PagePermission(permissions),
                        address=address,
                        length=length,
                        last=bool(flags & uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE),
                        cookie=cookie,
                    )
                )
            return bool(data)

    def respond(self, request: PageRequest, *, success: bool = True) -> None:
        """Answer a group of requests, by any one of it (struct iommu_hwpt_page_response).

        Args:
            request: The request.
            success: The pages are there now: the device tries again. Otherwise it is told that there are none.

        Raises:
            IoctlError: EINVAL: it has been answered already.
            ClosedError, ForkedError: As for `fileno`.
        """
        code = uapi.IOMMUFD_PAGE_RESP_SUCCESS if success else uapi.IOMMUFD_PAGE_RESP_INVALID
        try:
            os.write(self.fileno(), _RESPONSE.pack(request.cookie, code))
        except OSError as error:
            raise ioctl_error("write", error.errno or 0, f"the answer to {request}") from None

    def close(self) -> None:
        """Close the queue's fd, and destroy it (IOMMU_DESTROY). Does nothing the second time.

        In a forked child the child's copy of the fd is closed, and nothing else.

        Raises:
            InUseError: A page table uses it; nothing has been closed.
            BusyError: Something that this process does not know of uses it.
        """
        if self._iommufd.in_child:
            self._close_file()
            return
        super().close()

    def _destroy(self) -> None:
        # The kernel destroys no queue whose fd is open.
        self._close_file()
        super()._destroy()

    def mark_closed(self) -> None:
        """The kernel has destroyed it, or is about to with the iommufd."""
        self._close_file()
        super().mark_closed()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            if not self._iommufd.in_child:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._close_file()
