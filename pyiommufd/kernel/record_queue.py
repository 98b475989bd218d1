"""Queues of records: kernel objects with an fd of their own, which records of the kernel are read from."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic

from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.waitable import T, Waitable, Watched
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.iommufd import IOMMUFD


_LARGEST = 1 << 14  # steps that one read may take


class RecordQueue(KernelObject, Waitable[T]):
    """Base of kernel objects that records are read from, by an fd of their own.

    One read takes one record from the kernel, so that the fd is readable exactly as long as there are more. What a
    read has taken is on record before it returns: an exception of a signal handler leaves it to the next read.

    A subclass says how large records are, what their bytes mean, and what is waited for (``_awaited``). The request
    that creates it is given ``_queue._file``, for the fd.

    Thread safety: everything here may be used from any thread, and awaited in any event loop; each record is given to
    one of those who read. `close` wakes those who wait; they get `ClosedError`.
    """

    __slots__ = ("_queue", "_reads", "_room", "_step", "_watches")

    def __init__(self, iommufd: IOMMUFD, room: int, step: int = 0) -> None:
        """room: bytes of the smallest record; step: by how many others are larger, 0: none is."""
        super().__init__(iommufd)
        self._queue = _QueueFile(self)
        self._watches = self._queue._watches
        self._room, self._step = room, step
        # What has been read and not been handed out: the kernel has forgotten it.
        self._reads: dict[_Read[T], None] = {}

    @abstractmethod
    def _decode(self, data: bytes) -> Iterable[T]:
        """The records of what one read took: one; more if another process took a larger one at the same time.

        It may be asked for twice, where a signal handler reads as well; one of the answers is dropped.
        """

    def fileno(self) -> int:
        """The queue's own fd: readable while there is something to read.

        Raises:
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        return self._queue.fileno()

    def read(self, timeout: float | None = None) -> T:
        """The next one; other threads run meanwhile. ``await`` and ``async for`` do the same in an asyncio event loop.

        Args:
            timeout: Seconds to wait for it; 0: do not wait; None: as long as it takes.

        Raises:
            TimeoutError: None has come.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `fileno`; also when it is closed meanwhile.
        """
        return self._wait(timeout)

    @property
    def _handle(self) -> Watched:
        return self._queue

    def _take(self) -> T | None:
        file = self._queue._live()
        with self._iommufd._lock:
            more = True
            # Again after the last fetch: a signal handler may have fetched as well, and left it.
            while (record := self._next()) is None and more:
                more = self._fetch(file)
            return record

    def _fetch(self, file: ioctls.File) -> bool:
        """Take one record from the kernel, if there is one: by as little room as it takes, so that no second one fits.

        Returns:
            Whether there was one.
        """
        for step in range(_LARGEST):
            read: _Read[T] = _Read(self._room + step * self._step)
            try:
                self._reads[read] = None
                ioctls.file_readinto(file, read.memory, read.length)
            except IoctlError as error:
                self._queue._live()  # raises where it was closed meanwhile
                # Where the first record is larger than the room Linux 7.3 says EINVAL, and older ones read nothing.
                if error.errno != errno.EINVAL or not self._step:
                    raise
            finally:
                if not read.length[0]:
                    self._reads.pop(read, None)
            if read.length[0] or not (self._step and ioctls.file_readable(file)):
                return bool(read.length[0])
        what = f"{self!r}, whose next record has more than {self._room + step * self._step} bytes"
        raise ioctl_error("read", errno.EINVAL, what)

    def _next(self) -> T | None:
        """Hand out one of those that have been read."""
        for read in list(self._reads):
            if not read.length[0]:
                continue
            records = read.records(self)
            self._keep(tuple(records))
            try:
                return records.popleft()  # one step, which no signal handler comes between
            except IndexError:
                self._reads.pop(read, None)  # all of it has been handed out
        return None

    def _keep(self, records: tuple[T, ...]) -> None:
        """One of these is about to be handed out, by this call or by that of a signal handler."""

    def close(self) -> None:
        """Close the queue's fd, and destroy it (IOMMU_DESTROY). Does nothing the second time.

        Those who wait get `ClosedError`. In a forked child the child's copy of the fd is closed, and nothing else.

        Raises:
            InUseError: Something uses it, as a page table does; nothing has been closed.
            BusyError: Something that this process does not know of uses it, as a copy of the fd does, in a forked
                child, say. Its own fd is closed all the same, and it can be closed once that is gone.
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


class _Read(Generic[T]):
    """A read of the kernel's queue.

    Attributes:
        memory: Room for what is read.
        length: Bytes that have been read, which the C call stores; 0 until then.
    """

    __slots__ = ("_decoded", "length", "memory")

    def __init__(self, room: int) -> None:
        self.memory = bytearray(room)
        self.length = ioctls.new_cell("uint64_t")
        self._decoded: list[deque[T]] = []

    def records(self, queue: RecordQueue[T]) -> deque[T]:
        """Those that have not been handed out: the same object each time, also in a signal handler."""
        if not self._decoded:
            self._decoded.append(deque(queue._decode(bytes(self.memory[: self.length[0]]))))
        return self._decoded[0]

    def left(self) -> tuple[T, ...]:
        """Those of them that will be handed out."""
        return tuple(self._decoded[0]) if self._decoded else ()


class _QueueFile(Watched):
    """The fd of a queue."""

    __slots__ = ("_owner",)

    def __init__(self, owner: RecordQueue[Any]) -> None:
        super().__init__()
        self._owner = owner

    def _what(self) -> str:
        return f"{type(self._owner).__name__} {self._owner.id}"

    def __repr__(self) -> str:
        return repr(self._owner)
