"""Page requests of devices (I/O page faults), to be answered by the program."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntFlag
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from pyiommufd import uapi
from pyiommufd.errors import Cause, IoctlError, ioctl_error
from pyiommufd.kernel.memory.arguments import check_bool
from pyiommufd.kernel.record_queue import RecordQueue
from pyiommufd.printable import OneLine, counted
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.iommufd import IOMMUFD

_REQUEST = struct.Struct("=6IQ2I")  # struct iommu_hwpt_pgfault
_RESPONSE = struct.Struct("=2I")  # struct iommu_hwpt_page_response

_REFUSED_ITSELF = "the kernel has refused the requests itself: their device was detached or moved to another page table"


class PagePermission(IntFlag):
    """The kinds of access that a device asks for (IOMMU_PGFAULT_PERM_*)."""

    READ = uapi.IOMMU_PGFAULT_PERM_READ
    WRITE = uapi.IOMMU_PGFAULT_PERM_WRITE
    EXEC = uapi.IOMMU_PGFAULT_PERM_EXEC
    PRIVILEGED = uapi.IOMMU_PGFAULT_PERM_PRIV


@dataclass(frozen=True, slots=True, repr=False)
class PageRequest(OneLine):
    """A device's request for a page (struct iommu_hwpt_pgfault): one of a `PageRequestGroup`.

    Attributes:
        device: The device; None where this process has not bound it.
        pasid: The PASID of its access; None: without one.
        permissions: The kinds of access that it asks for.
        address: The address that it wants to access.
        length: Bytes that it may want from there on; 0 where it does not say.
    """

    device: Device | None
    pasid: int | None
    permissions: PagePermission
    address: int
    length: int

    def _line(self) -> str:
        who = "an unknown device" if self.device is None else self.device.name
        pasid = "" if self.pasid is None else f", PASID {self.pasid}"
        return f"of {who}{pasid}: {self.permissions.name or 'nothing'} at {self.address:#x}"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PageRequestGroup(OneLine):
    """Requests of a device that are answered together, by `FaultQueue.respond`. Read from a `FaultQueue`.

    Two of them are never equal: the kernel uses the numbers again.

    Attributes:
        requests: The requests, in the device's order; at least one.
        number: The device's number of the group.
        cookie: The kernel's number of the group, as long as it is not answered.
    """

    requests: tuple[PageRequest, ...]
    number: int
    cookie: int
    # Why it is not to be answered any more.
    _over: list[str] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[PageRequest]:
        return iter(self.requests)

    def _line(self) -> str:
        more = counted(len(self.requests) - 1, "more request")
        return f"{self.number} {self.requests[0]._line()}{f', and {more}' if len(self.requests) > 1 else ''}"


class FaultQueue(RecordQueue[PageRequestGroup]):
    """A queue of page requests of devices (IOMMU_FAULT_QUEUE_ALLOC; since Linux 6.11), in groups of any size.

    Made by `IOMMUFD.alloc_fault_queue`, and given to page tables by ``Device.alloc_hwpt(…, fault_queue=)``. A device
    that waits for pages waits until its group is answered. The kernel itself refuses what is not answered when the
    device is detached or moved to another page table, or the queue is closed.

    Thread safety: everything here may be used from any thread, and awaited in any event loop; each group is given to
    one of those who read. `close` wakes those who wait; they get `ClosedError`, and ``async for`` ends.
    """

    __slots__ = ("_cookies", "_unanswered")

    _awaited = "page request"

    def __init__(self, iommufd: IOMMUFD) -> None:
        # A read takes whole groups, as many as there is room for (Linux 7.3, iommufd_fault_fops_read).
        super().__init__(iommufd, _REQUEST.size, _REQUEST.size)
        self._unanswered: dict[PageRequestGroup, None] = {}
        self._cookies: dict[int, PageRequestGroup] = {}

    def _decode(self, data: bytes) -> Iterator[PageRequestGroup]:
        devices = {device.id: device for device in self._iommufd._context.devices()}
        for cookie, records in groupby(_REQUEST.iter_unpack(data), itemgetter(8)):
            requests = []
            for flags, device, pasid, number, permissions, _, address, length, _ in records:  # noqa: B007 (number)
                with_pasid = flags & uapi.IOMMU_PGFAULT_FLAGS_PASID_VALID
                requests.append(
                    PageRequest(
                        device=devices.get(device),
                        pasid=pasid if with_pasid else None,
                        permissions=PagePermission(permissions),
                        address=address,
                        length=length,
                    )
                )
            yield PageRequestGroup(tuple(requests), number, cookie)

    def read(self, timeout: float | None = None) -> PageRequestGroup:
        """The next group; other threads run meanwhile. ``await`` and ``async for`` do the same in an event loop.

        Args:
            timeout: Seconds to wait for it; 0: do not wait; None: as long as it takes.

        Raises:
            TimeoutError: None has come.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `fileno`; also when it is closed meanwhile.
        """
        return super().read(timeout)

    def _keep(self, records: tuple[PageRequestGroup, ...]) -> None:
        # Before they are handed out: an exception loses none of them.
        self._unanswered.update(dict.fromkeys(records))

    def _next(self) -> PageRequestGroup | None:
        group = super()._next()
        if group is not None:
            # The kernel uses a cookie again only once it has no group by it.
            older = self._cookies.get(group.cookie)
            self._cookies[group.cookie] = group
            if older is not None:
                self._settle(older, _REFUSED_ITSELF)
        return group

    def _settle(self, group: PageRequestGroup, why: str) -> None:
        group._over.append(why)
        self._unanswered.pop(group, None)
        if self._cookies.get(group.cookie) is group:
            del self._cookies[group.cookie]

    @property
    def unanswered(self) -> tuple[PageRequestGroup, ...]:
        """The groups that have been read here and not answered, in the order in which they were read.

        What was being served when an exception came is here still. So are groups that the kernel has refused itself;
        an answer to one of these raises.
        """
        coming = {group for read in list(self._reads) for group in read.left()}
        return tuple(group for group in tuple(self._unanswered) if not (group._over or group in coming))

    def respond(self, *groups: PageRequestGroup, success: bool = True) -> None:
        """Answer groups of requests, by one write (struct iommu_hwpt_page_response).

        Args:
            groups: The groups.
            success: The pages are there now: the device tries again. Otherwise it is told that there are none.

        Raises:
            IoctlError: EINVAL: the kernel has refused a group itself, as `unanswered` says. Those before it in the
                arguments are answered, those behind it not; they are ``unanswered`` still.
            ValueError: A group has been answered, is given twice, or comes from another queue; none is answered.
            TypeError: That is no group, or ``success`` no bool.
            ClosedError, ForkedError: As for `fileno`.
        """
        for group in groups:
            if not isinstance(group, PageRequestGroup):
                raise TypeError(f"what is answered is a PageRequestGroup, not {type(group).__name__}")
        code = uapi.IOMMUFD_PAGE_RESP_SUCCESS if check_bool(success, "success") else uapi.IOMMUFD_PAGE_RESP_INVALID
        self._queue._live()  # raises, in a forked child before it takes the lock
        with self._iommufd._lock:
            file = self._queue._live()
            left = list(dict.fromkeys(groups))
            if len(left) < len(groups):
                raise ValueError("a group is answered once, and is given twice here")
            for group in left:
                if group._over:
                    raise ValueError(f"{group!r} is not to be answered: {group._over[0]}")
                if group not in self._unanswered:
                    raise ValueError(f"{group!r} was not read from this {type(self).__name__} {self.id}")
            while left:
                answers = b"".join(_RESPONSE.pack(group.cookie, code) for group in left)
                try:
                    taken = ioctls.file_write(file, answers) // _RESPONSE.size
                except IoctlError as error:
                    self._queue._live()
                    raise self._refused(left[0], error.errno or 0, len(groups) - len(left), len(groups)) from None
                for group in left[:taken]:
                    self._settle(group, "it has been answered")
                del left[:taken]

    def _refused(self, group: PageRequestGroup, code: int, done: int, count: int) -> IoctlError:
        """The error for an answer that the kernel did not take."""
        causes: tuple[Cause, ...] = ()
        if code == errno.EINVAL:  # there is no group of that cookie any more
            self._settle(group, _REFUSED_ITSELF)
            causes = (Cause(_REFUSED_ITSELF),)
        which = f", number {done + 1} of {count}: {done} answered, {count - done - 1} not" if count > 1 else ""
        return ioctl_error("write", code, f"the answer to {group!r}{which}", causes)
