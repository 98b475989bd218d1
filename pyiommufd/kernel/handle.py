"""What every owner of an fd has in common."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import Self

from ..errors import ClosedError, ForkedError


def check_owner(pid: int, what: str) -> None:
    """Refuse the use of an object in a process other than the one that made it.

    Raises:
        ForkedError: This is a forked child. It shares the kernel's objects with its parent, so that what it
            does would be done to the parent's.
    """
    if os.getpid() != pid:
        raise ForkedError(f"{what} belongs to process {pid}, not to its forked child; open one of your own")


class Handle:
    """An owner of one fd.

    Closing is safe to repeat. In a forked child it closes the child's copy of the fd and nothing else. What is
    dropped without being closed is closed with a `ResourceWarning`.
    """

    __slots__ = ("__weakref__", "_fd", "_pid")

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._pid = os.getpid()

    def fileno(self) -> int:
        """The file descriptor.

        Raises:
            ClosedError: It has been closed.
            ForkedError: This is a forked child.
        """
        fd = self._fd
        if fd is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        if self._pid != os.getpid():
            check_owner(self._pid, f"this {type(self).__name__}")
        return fd

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._fd is None

    @property
    def in_child(self) -> bool:
        """Whether this process is a forked child of the one that owns it."""
        return self._pid != os.getpid()

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close the fd. Does nothing the second time."""
        self._close_fd()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The attribute is missing where __init__ failed.
        if getattr(self, "_fd", None) is None:
            return
        # A child forked while the object was alive did not leave it unclosed: its parent may close it yet.
        if not self.in_child:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self._close_fd()

    def __repr__(self) -> str:
        state = "closed" if self._fd is None else f"fd {self._fd}"
        return f"<{type(self).__name__} {state}>"
