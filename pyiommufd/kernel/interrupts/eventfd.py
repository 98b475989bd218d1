"""An eventfd: a notification from the kernel to a program, or from a program to the kernel."""

from __future__ import annotations

import contextlib
import operator
import os
import sys
from pathlib import Path

from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.kernel.waitable import Waitable, Watched
from pyiommufd.uapi import ioctls


def _number(eventfd: EventFD | int) -> int:
    """The number of an open eventfd's fd, which the caller owns. Raises as `EventFD` does."""
    fd = eventfd.fileno() if isinstance(eventfd, EventFD) else operator.index(eventfd)
    if not 0 <= fd < 1 << 31:
        raise ValueError(f"{fd} is not a file descriptor")
    try:
        os.fstat(fd)
    except OSError as error:
        raise ioctl_error("fstat", error.errno or 0, f"fd {fd}") from None
    # EINVAL from the kernel has other reasons as well, so look at /proc; without /proc, rely on the kernel.
    with contextlib.suppress(OSError):
        if (link := str(Path(f"/proc/self/fd/{fd}").readlink())) != "anon_inode:[eventfd]":
            raise ValueError(f"fd {fd} is not an eventfd but {link}")
    return fd


class EventFD(Watched, Waitable[int]):
    """An eventfd (eventfd(2)): a counter of signals, to wait for.

    A wait returns how many signals have come since the last one, and resets the count to 0: no signal is lost or
    reported twice. If several threads or tasks wait, each signal is reported to one of them.

    Thread safety: everything here may be used from any thread, and awaited in any event loop. `close` wakes those
    who wait; they get `ClosedError`.

    Attributes:
        lent: Whether this is a duplicate of the caller's eventfd. It is never read here: its user reads it, such as
            KVM. `close` closes the duplicate and signals nothing.
    """

    __slots__ = ("lent",)

    lent: bool

    _reader = ""
    _awaited = "signal"

    def __init__(self, eventfd: EventFD | int | None = None) -> None:
        """Make an eventfd.

        Args:
            eventfd: Make another fd of this one, which stays the caller's; None: a new one.

        Raises:
            ValueError, TypeError: It is not the number of an fd, or not of an eventfd.
            IoctlError: EBADF: it is not open.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        super().__init__()
        self.lent = eventfd is not None
        if eventfd is None:
            self._open_with(ioctls.file_eventfd)
        else:
            number = _number(eventfd)
            self._open_with(ioctls.file_duplicate, eventfd._live() if isinstance(eventfd, EventFD) else number)

    def fileno(self) -> int:
        """The file descriptor: readable when there has been a signal.

        For `select`, an event loop, or KVM. Whoever reads it takes the signals from those who wait here.

        Raises:
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        return super().fileno()

    def _what(self) -> str:
        return repr(self)

    def take(self) -> int:
        """How many signals have come since the last time, without waiting.

        Raises:
            ValueError: The eventfd is the caller's, who waits on that; or an `IOEventFD` or `UnmaskEvent`, which the
                kernel reads.
            ClosedError, ForkedError: As for `fileno`.
        """
        if (self.lent or self._reader) and not self.closed:
            reader = "the eventfd's owner" if self.lent else self._reader
            raise ValueError(f"{self!r}: only {reader} may read its signals")
        count = ioctls.file_take(self._file)
        if count != ioctls.NO_COUNT:
            return count
        # Raises, and says why.
        return int.from_bytes(ioctls.file_read(self._live(), 8), sys.byteorder)

    _take = take

    def wait(self, timeout: float | None = None) -> int:
        """Wait for a signal; other threads run meanwhile. ``await`` and ``async for`` wait in an asyncio event loop.

        Args:
            timeout: Seconds; None: for as long as it takes.

        Returns:
            How many signals have come since the last time; at least 1.

        Raises:
            TimeoutError: None has come.
            ValueError: As for `take`.
            ClosedError, ForkedError: As for `fileno`; also when it is closed meanwhile.
        """
        return self._wait(timeout)

    @property
    def _handle(self) -> Watched:
        return self

    def signal(self, count: int = 1) -> None:
        """Add to the counter, as the kernel does.

        Raises:
            ValueError: The count is not positive or does not fit 64 bits.
            IoctlError: EAGAIN: the counter is full.
            ClosedError, ForkedError: As for `fileno`.
        """
        count = operator.index(count)
        if not 0 < count < (1 << 64) - 1:
            raise ValueError(f"{count} is not a number of signals")
        try:
            ioctls.file_write(self._live(), count.to_bytes(8, sys.byteorder))
        except IoctlError:
            self._live()
            raise

    def close(self) -> None:
        """Close it, and wake those who wait. Does nothing the second time."""
        super().close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self.closed else ''}>"
