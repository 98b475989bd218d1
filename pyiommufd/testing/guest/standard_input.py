"""The standard input of a command in a guest: what a file descriptor of this process gives, as the command takes it."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from pyiommufd.testing.guest.channel import Channel, Request
from pyiommufd.testing.inside.agent import CHUNK

_BACKGROUND_SECONDS = 0.5
_END_SECONDS = 1.0


def terminal_size(fd: int) -> list[int]:
    """The lines and columns of a terminal."""
    size = os.get_terminal_size(fd)
    return [size.lines, size.columns]


class StandardInput:
    """Passes a file descriptor's content on. A piece is read only when the guest has asked for one: nothing piles up.

    A terminal is read only while this process is in its foreground, so that a background job is not stopped. A thread
    of its own reads from `start` to the end of the ``with`` block.

    Args:
        channel: The connection to the agent.
        source: The file descriptor to read.
        follow_size: Pass on the size of the terminal that it is, too, whenever that changes; in the main thread only.
    """

    def __init__(self, channel: Channel, source: int, *, follow_size: bool = False) -> None:
        self._channel = channel
        self._source = source
        self._follow_size = follow_size
        self._old_handler: Any = None
        self._wanted = False
        self._resized = False
        self._ended = False
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    def more(self, data: bytes = b"") -> None:
        """The guest asks for a piece; from any thread."""
        del data
        with self._lock:
            self._wanted = True
            if not self._ended:
                os.eventfd_write(self._wake, 1)

    def _resize(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._resized = True
        os.eventfd_write(self._wake, 1)

    def start(self, request: Request) -> None:
        """Pass on to this request's command from now on."""
        self._thread = threading.Thread(target=self._pass_on, args=(request,), name="pyiommufd-input", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        if self._follow_size:
            self._old_handler = signal.signal(signal.SIGWINCH, self._resize)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._follow_size:
            signal.signal(signal.SIGWINCH, self._old_handler)
        with self._lock:
            self._ended = True
            os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            # It waits for nothing but a read of what another process has taken since the source was ready.
            self._thread.join(_END_SECONDS)
        if self._thread is None or not self._thread.is_alive():
            os.close(self._wake)

    def _pass_on(self, request: Request) -> None:
        # A read from the background of a terminal then fails, and does not stop this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})
        while True:
            readable = self._wanted and self._may_read()
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if readable:
                poll.register(self._source, select.POLLIN)
            wait = 1000 * _BACKGROUND_SECONDS if self._wanted and not readable else None
            ready = dict(poll.poll(wait))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._ended:
                return
            if self._resized:
                self._resized = False
                self._channel.tell("resize", request, size=terminal_size(self._source))
            if self._source in ready and not self._read(request):
                return

    def _may_read(self) -> bool:
        try:
            return os.tcgetpgrp(self._source) == os.getpgrp()
        except OSError:
            return True  # it is not the terminal that this process is controlled by

    def _read(self, request: Request) -> bool:
        """Pass on one piece; False where it was the last."""
        try:
            data = os.read(self._source, CHUNK)
        except OSError as error:
            if error.errno == errno.EAGAIN or (error.errno == errno.EIO and os.isatty(self._source)):
                return True  # another has taken it, or this process was put into the terminal's background
            if error.errno != errno.EBADF:
                request.fail(OSError(error.errno, f"standard input: {error.strerror}"))
                return False
            data = b""  # not open for reading, as nohup has it
        self._wanted = False
        self._channel.tell("input", request, data=data)
        return bool(data)
