"""What the objects that the kernel keeps behind an iommufd by their id have in common."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..errors import ClosedError, InUseError, IoctlError
from ..uapi import ioctls
from .closing import Closing

if TYPE_CHECKING:
    from .device import Device
    from .iommufd import IOMMUFD


class KernelObject(Closing):
    """An object of an iommufd that is destroyed by its id (IOMMU_DESTROY).

    Closing is safe to repeat, and does nothing in a forked child: the object is the parent's.

    Attributes:
        id: Its id within the iommufd. The kernel reuses ids at once after the object is destroyed.
    """

    __slots__ = ("__weakref__", "_closed", "_iommufd", "id", "live_fd")

    def __init__(self, iommufd: IOMMUFD, object_id: int, fd: int) -> None:
        self._iommufd = iommufd
        self._closed = False
        # None once it cannot be used any more: the hot path then has one thing to look at.
        self.live_fd: int | None = fd
        self.id = object_id

    def fd(self) -> int:
        """The fd of its iommufd.

        Raises:
            ClosedError, ForkedError: One of the two is closed, or belongs to the parent process.
        """
        if self.live_fd is None:
            self._iommufd.fileno()
            raise ClosedError(f"this {self!r} is closed")
        return self.live_fd

    def mark_forked(self) -> None:
        """This process is a forked child, which must not touch it."""
        self.live_fd = None

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd that it belongs to."""
        return self._iommufd

    @property
    def closed(self) -> bool:
        """Whether it has been closed, or its iommufd has."""
        return self._closed

    @property
    def users(self) -> tuple[Device | KernelObject, ...]:
        """What this process has made that uses it: devices that are attached to it, objects that were made for it."""
        return self._iommufd.users_of(self)

    def close(self) -> None:
        """Destroy it (IOMMU_DESTROY). Does nothing the second time, nor in a forked child.

        Raises:
            InUseError: Something uses it, as a device that is attached does; nothing has been destroyed.
            BusyError: Something that this process does not know of uses it.
        """
        if self._closed or self._iommufd.in_child:
            return
        with self._iommufd.lock:
            users = self._in_the_way()
            if users:
                names = ", ".join(getattr(user, "name", repr(user)) for user in users)
                raise InUseError(f"{self!r} is in use: {names}; detach or close first", users)
            self._destroy()
            self.mark_closed()

    def _in_the_way(self) -> tuple[Device | KernelObject, ...]:
        """What keeps it from being closed: its users, but for those that it owns and closes itself."""
        return self.users

    def _destroy(self) -> None:
        try:
            ioctls.destroy(self.fd(), self.id)
        except IoctlError as error:
            raise ioctls.failure("IOMMU_DESTROY", repr(self), error.errno) from None
        except BaseException:
            # A signal handler raised, maybe after the kernel had destroyed it. Under the lock nothing of this
            # process has been given the id meanwhile: what is there is still this.
            try:
                ioctls.destroy(self.fd(), self.id)
            except IoctlError as error:
                if error.errno == errno.ENOENT:
                    self.mark_closed()
            else:
                self.mark_closed()
            raise

    def mark_closed(self) -> None:
        """Let go of all that belonged to it, once the kernel has destroyed it."""
        self._closed = True
        self.live_fd = None
        self._iommufd.forget(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{' closed' if self._closed else ''}>"
