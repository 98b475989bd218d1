"""Waiting for what an fd says: by a call that blocks, in an asyncio event loop, and by ``async for``."""

from __future__ import annotations

import contextlib
import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pyiommufd.errors import ClosedError, IoctlError
from pyiommufd.kernel.handle import Handle, forked_error
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
"""What is waited for."""

_LONGEST = 86400.0  # seconds that one poll may take: its own limit is an int of milliseconds


def _first_running_loop() -> asyncio.AbstractEventLoop:
    global _running_loop
    import asyncio

    _running_loop = asyncio.get_running_loop
    return _running_loop()


# asyncio.get_running_loop, which is imported by the first wait in a loop.
_running_loop: Callable[[], asyncio.AbstractEventLoop] = _first_running_loop


def _seconds(timeout: float) -> float:
    """A limit of a wait; raises TypeError or ValueError for what is no number of seconds."""
    if not (hasattr(timeout, "__float__") or hasattr(timeout, "__index__")):
        raise TypeError(f"timeout is a number of seconds or None, not {type(timeout).__name__}")
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = math.nan
    if math.isnan(seconds):
        raise ValueError(f"timeout is a number of seconds or None, not {timeout!r:.60}")
    return seconds


class Watch:
    """What one event loop has of a file: an fd that is readable while the file is, and the tasks that wait for it.

    The fd stays the loop's reader between two waits, since to add and remove one takes longer than all the rest of a
    wait. It is removed where the file is readable and nobody waits: else the loop would never sleep.

    It wakes the one who has waited longest, and then rests until something new comes; while there are others it does
    not rest, and wakes the next. So nobody sleeps who has not seen the file empty, whatever becomes of the one who was
    woken.

    Thread safety: it is used by the thread of its loop alone; `close` by any, once the loop is closed.

    Attributes:
        loop: The event loop.
        waiters: Of those who wait; the first is the next to be woken.
        idle: Nobody has waited since it was readable last: whoever waits calls `attend`.
        turn: Whether other tasks have had their turn since something was last taken without a wait.
    """

    __slots__ = ("_end", "_epoll", "_fd", "_file", "_reading", "idle", "loop", "turn", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop, file: ioctls.File) -> None:
        self.loop = loop
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.idle = self.turn = True
        self._reading = False
        self._file = file
        # Not handles: what a loop that was closed has left is closed with the last reference, and is no mistake.
        self._epoll, self._end = ioctls.new_file(), ioctls.new_file()
        ioctls.file_watch(file, self._epoll, self._end)
        self._fd = self._epoll.fd

    def attend(self) -> None:
        """Somebody waits."""
        if not self._reading:
            self.loop.add_reader(self._fd, self._readable)
            self._reading = True
        self.idle = False

    def forget(self, waiter: asyncio.Future[None]) -> None:
        """It waits no more."""
        with contextlib.suppress(ValueError):
            self.waiters.remove(waiter)

    def _readable(self) -> None:
        waiters = self.waiters
        while waiters:
            waiter = waiters[0]
            if not waiter.done():
                waiter.set_result(None)
                waiters.popleft()
                if not waiters:
                    ioctls.file_rest(self._fd)
                return
            waiters.popleft()  # it was cancelled
        if self.idle or self._file.fd < 0:
            self._leave()
        else:
            self.idle = True
            ioctls.file_rest(self._fd)

    def _leave(self) -> None:
        self.idle, self._reading = True, False
        self.loop.remove_reader(self._fd)
        if self._file.fd < 0:
            self.close()

    def close(self) -> None:
        """Close its fds."""
        ioctls.file_close(self._epoll)
        ioctls.file_close(self._end)


class Watched(Handle):
    """An owner of an fd that is waited for."""

    __slots__ = ("_watches",)

    def __init__(self, fd: int = -1) -> None:
        self._watches: dict[asyncio.AbstractEventLoop, Watch] = {}
        super().__init__(fd)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> Watch:
        """Have a loop watch it, which does not do so yet."""
        self._drop_watches()
        try:
            watch = Watch(loop, self._live())
        except IoctlError:
            self._live()  # raises where it was closed meanwhile
            raise
        self._watches[loop] = watch
        if self._file.fd < 0:  # closed meanwhile, maybe before the watch was there to be dropped
            self._watches.pop(loop, None)
            watch.close()
            self._live()
        return watch

    def _drop_watches(self) -> None:
        """Close what is left of loops that were closed; in a forked child, of all."""
        for loop in list(self._watches):
            if (self.in_child or loop.is_closed()) and (watch := self._watches.pop(loop, None)):
                watch.close()

    def _close_fd(self) -> None:
        super()._close_fd()
        self._drop_watches()
        # Those of the other loops are readable now: they wake who waits there, and close themselves.
        self._watches.clear()


class Waitable(Generic[T]):
    """Base of what is waited for by its fd. Whatever comes is given to one of those who wait, once.

    A wait takes nothing before it ends: a limit that has passed, a cancelled task or a signal handler's exception
    leaves what comes to the next one. Those who wait are woken when the fd is closed.
    """

    __slots__ = ()

    _awaited: ClassVar[str]
    """What is waited for, in the message of a TimeoutError."""

    _watches: dict[asyncio.AbstractEventLoop, Watch]
    """Those of the owner of the fd."""

    @property
    @abstractmethod
    def _handle(self) -> Watched:
        """The owner of the fd."""

    @abstractmethod
    def _take(self) -> T | None:
        """What has come, without waiting; what is false, such as None: nothing.

        Raises where it is closed, or the parent process's.
        """

    def _wait(self, timeout: float | None) -> T:
        """Wait, for that many seconds or, with None, for as long as it takes; other threads run meanwhile.

        Raises:
            TimeoutError: Nothing has come.
            ClosedError, ForkedError: It is closed, also meanwhile, or belongs to the parent process.
        """
        end = None if timeout is None else time.monotonic() + _seconds(timeout)
        while not (taken := self._take()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no {self._awaited} of {self!r} within {timeout:g} s")
            # Rounded up, so as not to come back early and spin.
            milliseconds = -1 if left is None else int(min(left, _LONGEST) * 1000) + 1
            ioctls.file_wait(self._handle._file, milliseconds)
        return taken

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in an asyncio event loop. Raises as the call that blocks does, but has no limit of its own.

        Other tasks have their turn in at least every second wait, also where something is there already.
        """
        loop = _running_loop()
        watch = self._watches.get(loop) or self._handle._watch(loop)
        # The other tasks' turn, also where there is always more: a VM can make events as fast as they are read.
        if watch.turn:
            watch.turn = False
        else:
            yield
            watch.turn = True
        waiters, in_vain = watch.waiters, False
        while not (taken := self._take()):
            waiter = loop.create_future()
            try:
                if in_vain:
                    waiters.appendleft(waiter)  # it stays the first
                else:
                    waiters.append(waiter)
                if watch.idle:
                    watch.attend()
                yield from waiter
            except BaseException:
                watch.forget(waiter)
                raise
            in_vain = watch.turn = True
        return taken

    def __aiter__(self) -> AsyncIterator[T]:
        """``async for``: waits over and over, until it is closed."""
        return self

    async def __anext__(self) -> T:
        """The next; the end when it is closed."""
        try:
            return await self
        except ClosedError:
            if self._handle.in_child:
                raise forked_error(f"this {type(self).__name__}", self._handle.pid) from None
            raise StopAsyncIteration from None
