"""What every owner of an fd has in common."""

from __future__ import annotations

import operator
import os
import stat
import warnings
import weakref

from ..errors import ClosedError, ForkedError, ioctl_error
from .closing import Closing

# Every open handle, by its id. A dictionary, since its single steps are atomic.
_open: dict[int, weakref.ref[Handle]] = {}


def _after_fork_in_child() -> None:
    for reference in list(_open.values()):
        handle = reference()
        if handle is not None:
            handle.mark_forked()


# In the child what the handles stand for is its parent's: every use would be done to the parent's mappings. Told
# to the objects once, at the fork: to compare process ids would be a system call at each map and register access.
os.register_at_fork(after_in_child=_after_fork_in_child)


def forked_error(what: str, pid: int) -> ForkedError:
    """The error for the use, in a forked child, of what process ``pid`` made."""
    return ForkedError(f"{what} belongs to process {pid}, not to its forked child; open one of your own")


def character_device(fd: int) -> tuple[int, str]:
    """The number of an fd, and which device node it is of: ``major:minor``, or nothing where it is none's.

    Raises:
        TypeError, ValueError: It is no number of an fd.
        IoctlError: EBADF: it is not open.
    """
    fd = operator.index(fd)
    try:
        status = os.fstat(fd)
    except OverflowError:
        raise ValueError(f"{fd} is no file descriptor") from None
    except OSError as error:
        raise ioctl_error("fstat", error.errno or 0, f"fd {fd}") from None
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return fd, number if stat.S_ISCHR(status.st_mode) else ""


class Handle(Closing):
    """An owner of one fd.

    Closing is safe to repeat. In a forked child it closes the child's copy of the fd and nothing else. What is
    dropped without being closed is closed with a `ResourceWarning`.

    Attributes:
        pid: The process that made it.
    """

    __slots__ = ("__weakref__", "_fd", "_forked", "pid")

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._forked = False
        self.pid = os.getpid()
        _open[id(self)] = weakref.ref(self)

    def fileno(self) -> int:
        """The file descriptor.

        Raises:
            ClosedError: It has been closed.
            ForkedError: This is a forked child.
        """
        fd = self._fd
        if fd is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        if self._forked:
            raise forked_error(f"this {type(self).__name__}", self.pid)
        return fd

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._fd is None

    @property
    def in_child(self) -> bool:
        """Whether this process is a forked child of the one that owns it."""
        return self._forked

    def mark_forked(self) -> None:
        """This process is a forked child: from now on only `close` does something."""
        self._forked = True

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, None
        _open.pop(id(self), None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close the fd. Does nothing the second time."""
        self._close_fd()

    def __del__(self) -> None:
        _open.pop(id(self), None)
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
