"""Waiting for what an fd says: by a call that blocks, in an asyncio event loop, and by ``async for``."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Generator
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from pyiommufd.errors import ClosedError, IoctlError
from pyiommufd.kernel.handle import Handle, forked_error
from pyiommufd.uapi import ioctls

T = TypeVar("T")
"""What is waited for."""

_LONGEST = 86400.0  # seconds that one poll may take: its own limit is an int of milliseconds


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


class Waitable(Generic[T]):
    """Base of what is waited for by its fd. Whatever comes is given to one of those who wait, once.

    A wait takes nothing before it ends: a limit that has passed, a cancelled task or a signal handler's exception
    leaves what comes to the next one. Those who wait are woken when the fd is closed.
    """

    __slots__ = ()

    _awaited: ClassVar[str]
    """What is waited for, in the message of a TimeoutError."""

    @property
    def _handle(self) -> Handle:
        """The owner of the fd."""
        raise NotImplementedError

    def _take(self) -> T | None:
        """What has come, without waiting; None: nothing. Raises where it is closed, or the parent process's."""
        raise NotImplementedError

    def _wait(self, timeout: float | None) -> T:
        """Wait, for that many seconds or, with None, for as long as it takes; other threads run meanwhile.

        Raises:
            TimeoutError: Nothing has come.
            ClosedError, ForkedError: It is closed, also meanwhile, or belongs to the parent process.
        """
        end = None if timeout is None else time.monotonic() + _seconds(timeout)
        while (taken := self._take()) is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no {self._awaited} of {self!r} within {timeout:g} s")
            # Rounded up, so as not to come back early and spin.
            milliseconds = -1 if left is None else int(min(left, _LONGEST) * 1000) + 1
            ioctls.file_wait(self._handle._file, milliseconds)
        return taken

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in an asyncio event loop. Raises as the call that blocks does, but has no limit of its own.

        Other tasks have their turn first, also where something is there already.
        """
        return self._wait_async().__await__()

    async def _wait_async(self) -> T:
        import asyncio

        # The other tasks' turn, also where there is always more: a VM can make events as fast as they are read.
        await asyncio.sleep(0)
        if (taken := self._take()) is not None:
            return taken
        loop = asyncio.get_running_loop()
        # Fds of this wait alone: an event loop allows one reader per fd, and these stay open if it is closed meanwhile.
        with Handle() as watch, Handle() as end, contextlib.ExitStack() as readers:
            try:
                watch._open_with(partial(ioctls.file_watch, self._handle._live()))
                end._open_with(partial(ioctls.file_waker, self._handle._live()))
            except IoctlError:
                self._handle._live()  # raises where it was closed meanwhile
                raise
            readable = asyncio.Event()
            for fd in (watch.fileno(), end.fileno()):
                loop.add_reader(fd, readable.set)
                readers.callback(loop.remove_reader, fd)
            while (taken := self._take()) is None:
                readable.clear()
                await readable.wait()
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
