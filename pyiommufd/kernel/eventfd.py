"""An eventfd: how the kernel tells a program of something, or a program the kernel."""

from __future__ import annotations

import contextlib
import operator
import os
import select
import threading
import time
from collections.abc import AsyncIterator, Generator
from typing import Any

from ..errors import ClosedError
from .handle import Handle, forked_error

_LONGEST = 86400.0  # seconds that one poll may take: its own limit is an int of milliseconds


class EventFD(Handle):
    """A counter of signals, to wait for.

    What waits gets how many signals have come since the last time, and sets the count back to 0: nothing that was
    signalled is lost or told twice. Where several wait, each signal is told to one of them.

    Thread safety: everything here may be used from any thread, and awaited in any event loop. `close` wakes those
    who wait; they get `ClosedError`.
    """

    __slots__ = ("_closing", "_condition", "_waiting")

    def __init__(self) -> None:
        self._condition = threading.Condition()
        # The threads that wait: the fd must not be closed under them, as its number could be another file's at once.
        self._waiting: list[int] = []
        self._closing = False
        super().__init__(None)
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The file descriptor: readable when there has been a signal.

        For `select`, an event loop, or KVM. Whoever reads it takes the signals from those who wait here.

        Raises:
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        if self._closing:
            raise ClosedError(f"this {self!r} is closed")
        return super().fileno()

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closing or self._fd is None

    def take(self) -> int:
        """How many signals have come since the last time, without waiting.

        Raises:
            ClosedError, ForkedError: As for `fileno`.
        """
        # Under the lock: what close signals, to wake those who wait, is nobody's to take.
        with self._condition:
            try:
                return os.eventfd_read(self.fileno())
            except BlockingIOError:
                return 0

    def wait(self, timeout: float | None = None) -> int:
        """Wait for a signal; other threads run meanwhile.

        Args:
            timeout: Seconds; None: for as long as it takes.

        Returns:
            How many signals have come since the last time; at least 1.

        Raises:
            TimeoutError: None has come.
            ClosedError, ForkedError: As for `fileno`; also when it is closed meanwhile.
        """
        end = None if timeout is None else time.monotonic() + timeout
        me = threading.get_ident()
        with self._condition:
            fd = self.fileno()
            self._waiting.append(me)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            while not (count := self.take()):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"no signal of {self!r} within {timeout:g} s")
                # Rounded up, so as not to come back early and spin.
                poll.poll(None if left is None else int(min(left, _LONGEST) * 1000) + 1)
            return count
        finally:
            with self._condition:
                self._waiting.remove(me)
                if self._closing and not self._waiting:
                    self._close_fd()
                    self._condition.notify_all()

    def signal(self, count: int = 1) -> None:
        """Add to the counter, as the kernel does.

        Raises:
            ValueError: The count is not positive or does not fit 64 bits.
            ClosedError, ForkedError: As for `fileno`.
        """
        count = operator.index(count)
        if not 0 < count < (1 << 64) - 1:
            raise ValueError(f"{count} is no number of signals")
        with self._condition:
            os.eventfd_write(self.fileno(), count)

    def __await__(self) -> Generator[Any, None, int]:
        """Wait for a signal in an asyncio event loop: the count, and the errors, of `wait`."""
        return self._wait_async().__await__()

    async def _wait_async(self) -> int:
        import asyncio

        if count := self.take():
            return count
        loop = asyncio.get_running_loop()
        # Of its own: a loop has one reader an fd, and this one stays open when the eventfd is closed meanwhile.
        with self._condition:
            fd = os.dup(self.fileno())
        readable = asyncio.Event()
        try:
            loop.add_reader(fd, readable.set)
            try:
                while not (count := self.take()):
                    readable.clear()
                    await readable.wait()
                return count
            finally:
                loop.remove_reader(fd)
        finally:
            os.close(fd)

    def __aiter__(self) -> AsyncIterator[int]:
        """``async for count in …``: waits over and over, until it is closed."""
        return self

    async def __anext__(self) -> int:
        """The next count; the end when it is closed."""
        try:
            return await self
        except ClosedError:
            if self.in_child:
                raise forked_error(f"this {type(self).__name__}", self.pid) from None
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Close it, and wake those who wait. Does nothing the second time."""
        if self._fd is None:
            return
        if self.in_child:
            self._close_fd()
            return
        with self._condition:
            if not self._closing:
                self._closing = True
                with contextlib.suppress(BlockingIOError):  # it is full: readable anyhow
                    os.eventfd_write(self._fd, 1)
            if not self._waiting:
                self._close_fd()
                return
            # The last of those who wait closes the fd. Where this runs in a signal handler, that may be the code below.
            if threading.get_ident() not in self._waiting:
                self._condition.wait_for(lambda: self._fd is None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self.closed else ''}>"
