"""The base class of kernel objects that an iommufd identifies by id."""

from __future__ import annotations

from pyiommufd import diagnose
from pyiommufd.closing import Closing
from pyiommufd.errors import ClosedError, InUseError, IoctlError
from pyiommufd.light_typing import TYPE_CHECKING
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate, ParamSpec, TypeVar

    from pyiommufd.kernel.device.attachable import Attachable
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.iommufd import IOMMUFD

    _P = ParamSpec("_P")
    _T = TypeVar("_T")


class KernelObject(Closing):
    """An object of an iommufd that is destroyed by its id (IOMMU_DESTROY).

    Closing is safe to repeat, and does nothing in a forked child: the object is the parent's.

    Thread safety: everything here may be used from any thread.
    """

    __slots__ = ("__weakref__", "_borrowed", "_c", "_iommufd")

    def __init__(self, iommufd: IOMMUFD) -> None:
        self._iommufd = iommufd
        self._borrowed = False
        self._c = ioctls.new_object(iommufd._file)

    def _create(self, request: Callable[[ioctls.Object], None]) -> None:
        """Create the kernel object. It is recorded before the request, and stays so while the kernel has it.

        If a signal handler raises after the request, the object exists until it or the iommufd is closed.
        """
        with self._iommufd._lock:
            self._iommufd._live()
            try:
                self._iommufd._remember(self)
                request(self._c)
            finally:
                if self.closed:
                    self._iommufd._forget(self)
            # An object that had this id is gone: a process that shares the iommufd has destroyed it.
            for other in list(self._iommufd._context.objects()):
                if other is not self and other.id == self.id:
                    other._release()

    @property
    def id(self) -> int:
        """Its id within the iommufd. The kernel reuses ids at once after the object is destroyed."""
        return self._c.id

    def _live(self) -> ioctls.File:
        """The fd of its iommufd, for a call. Raises where either is closed, or belongs to the parent process."""
        if self.closed:
            raise ClosedError(f"this {type(self).__name__} {self.id} is closed")
        return self._iommufd._live()

    def _call(
        self, call: Callable[Concatenate[ioctls.Object, _P], _T], *arguments: _P.args, **keywords: _P.kwargs
    ) -> _T:
        """Call a function of `ioctls` on this object. Raises as `_live` does, also if it is closed meanwhile."""
        self._live()
        try:
            return call(self._c, *arguments, **keywords)
        except IoctlError:
            self._live()
            raise

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd that it belongs to."""
        return self._iommufd

    @property
    def closed(self) -> bool:
        """Whether it has been closed, or its iommufd has."""
        return not self._c.state

    @property
    def uses(self) -> tuple[KernelObject, ...]:
        """What of its iommufd it was made for, and keeps from being destroyed."""
        return ()

    @property
    def _owner(self) -> KernelObject | None:
        """The object whose ``close`` closes this one as well."""
        return None

    def _goes_with(self, device: Attachable) -> bool:
        """Whether a close of this device closes it."""
        del device
        return False

    def _owned(self) -> list[KernelObject]:
        return [user for user in self.users if isinstance(user, KernelObject) and user._owner is self]

    @property
    def users(self) -> tuple[Device | KernelObject, ...]:
        """What this process has made that uses it: devices that are attached to it, objects that were made for it."""
        return self._iommufd._users_of(self)

    def close(self) -> None:
        """Destroy it (IOMMU_DESTROY). Does nothing the second time, nor in a forked child.

        What another process made, and is only borrowed here (`IOMMUFD.vfio_ioas`), is released and not destroyed.

        Raises:
            InUseError: Something uses it, as a device that is attached does; nothing has been destroyed.
            BusyError: Something that this process does not know of uses it.
        """
        if self._iommufd.in_child:
            return
        with self._iommufd._lock:
            try:
                if not self.closed and not self._borrowed:
                    if users := self._in_the_way():
                        raise self._in_use(users, "detach or close first")
                    self._destroy()
            finally:
                # Also where a signal handler raises once the kernel has destroyed it.
                if self.closed or self._borrowed:
                    self._release()

    def _ended(self) -> bool:
        """Whether it is closed. Ends a close that a signal handler ended once the kernel had destroyed it.

        Not where another thread has the lock: that one may be closing it just now.
        """
        if not self.closed:
            return False
        if self.id and not self._iommufd.in_child and self._iommufd._lock.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._iommufd._lock.release()
        return True

    def _in_the_way(self) -> tuple[Device | KernelObject, ...]:
        """What keeps it from being closed: its users, and those of what it owns, directly or through others."""
        found: dict[Device | KernelObject, None] = {}
        for user in self.users:
            if isinstance(user, KernelObject) and user._owner is self:
                found |= dict.fromkeys(user._in_the_way())
            else:
                found[user] = None
        # By owner, not by a list of what is owned: a signal handler may make one more meanwhile, which is closed, too.
        return tuple(one for one in found if not (isinstance(one, KernelObject) and one._is_owned_by(self)))

    def _is_owned_by(self, other: KernelObject) -> bool:
        owner = self._owner
        return owner is not None and (owner is other or owner._is_owned_by(other))

    def _in_use(self, users: tuple[object, ...], way_out: str) -> InUseError:
        names = ", ".join(getattr(user, "name", repr(user)) for user in users)
        return InUseError(f"{self!r} is in use: {names}; {way_out}", users)

    def _destroy(self) -> None:
        # The latest first: the kernel may want an order, as it does of hardware queues.
        for made in reversed(self._owned()):
            made.close()
        try:
            ioctls.destroy(self._c)
        except IoctlError as error:
            raise diagnose.destroy_error(error.errno or 0, repr(self), queue=hasattr(self, "fileno")) from None

    def _release(self) -> None:
        """Release what belongs to it, once the kernel has destroyed it, or before the iommufd's close does."""
        ioctls.abandon(self._c)
        self._iommufd._forget(self)

    def _mark_forked(self) -> None:
        """This process is a forked child, which does not have what is mapped of it."""

    def _finalize(self) -> None:
        """Its iommufd, which nobody has closed, is about to be collected: let go of what holds memory."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{' closed' if self.closed else ''}>"
