"""The state of one kernel iommufd in this process, shared by all `IOMMUFD` objects that refer to it."""

from __future__ import annotations

import os
import weakref
from _thread import RLock  # that of threading, which takes longer to import than this package

from pyiommufd.light_typing import TYPE_CHECKING
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeVar

    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.kernel_object import KernelObject
    from pyiommufd.kernel.pagetables.attachment import GroupState

    _T = TypeVar("_T")

_lock = RLock()  # a signal handler may make one, too
# Keyed by id: a dict can be copied while other threads change it; a WeakSet cannot.
_contexts: dict[int, weakref.ref[Context]] = {}


def _after_fork_in_child() -> None:
    global _lock
    _lock = RLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)


def _existing(references: dict[int, weakref.ref[_T]]) -> list[_T]:
    """The objects that still exist; dead weak references are dropped."""
    found = []
    for key in list(references):  # not its items, which would make tuples, and so may run finalizers that change it
        reference = references.get(key)
        if reference is None:
            continue
        if (one := reference()) is not None:
            found.append(one)
        elif references.get(key) is reference:
            references.pop(key, None)
    return found


class Context:
    """An iommufd of the kernel's, which several `IOMMUFD` objects of a process may stand for (`IOMMUFD.from_fd`).

    Attributes:
        lock: Held while an action changes who is bound, attached or alive: the kernel's answer and what it means for
            the group stay one step. Maps and unmaps do without.
        shared: Whether others may do things with it that are not known here: they may have its fd.
    """

    __slots__ = ("__weakref__", "_groups", "_members", "lock", "shared")

    def __init__(self) -> None:
        # By group id, or by the device's name where no IOMMU covers it.
        self._groups: dict[int | str, GroupState] = {}
        self._members: dict[int, weakref.ref[IOMMUFD]] = {}
        self.lock = RLock()
        self.shared = False

    @classmethod
    def for_iommufd(cls, iommufd: IOMMUFD, fd: int) -> Context:
        """The context of another object of this process on the same iommufd, or a new one.

        Where the kernel does not say which fds are the same (before 6.10, in some containers), each has its own; they
        are shared all the same, since the program must have asked the other one for its fd.
        """
        with _lock:
            for context in _existing(_contexts):
                if any(ioctls.file_same(member._file, fd) for member in _existing(context._members)):
                    break
            else:
                context = cls()
                _contexts[id(context)] = weakref.ref(context)
            context._members[id(iommufd)] = weakref.ref(iommufd)
            return context

    def group(self, host: HostDevice) -> GroupState:
        """What is known of a device's group."""
        from pyiommufd.kernel.pagetables.attachment import GroupState

        key = host.name if host.group_id is None else host.group_id
        return self._groups.setdefault(key, GroupState())

    def devices(self) -> Iterator[Device]:
        """Every device that this process has bound to it."""
        for member in _existing(self._members):
            yield from member.devices

    def objects(self) -> Iterator[KernelObject]:
        """Every other object of it that this process has made, or borrows."""
        for member in _existing(self._members):
            yield from member._objects_in_order()

    def object(self, object_id: int) -> KernelObject | None:
        """The object of an id."""
        return next((made for made in self.objects() if made.id == object_id), None)
