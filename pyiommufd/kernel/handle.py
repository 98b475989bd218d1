"""The base class of objects that own an fd, and its handling of forks."""

from __future__ import annotations

import operator
import os
import stat
import warnings
import weakref

from pyiommufd.closing import Closing
from pyiommufd.errors import ClosedError, ForkedError, ioctl_error
from pyiommufd.light_typing import TYPE_CHECKING
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from collections.abc import Callable

# Every open handle, by id, with its file, which stays usable while the handle is being garbage collected. A dict,
# since its single operations are atomic.
_open: dict[int, tuple[ioctls.File, weakref.ref[Handle]]] = {}
_forks = 0  # goes up with each fork, before it and after


def _after_fork_in_child() -> None:
    for file, reference in list(_open.values()):
        if (handle := reference()) is not None:
            handle._mark_forked()
        else:
            ioctls.file_forked(file)


def _at_fork() -> None:
    global _forks
    _forks += 1


# In the child the handles refer to the parent's kernel objects: every use would affect the parent's mappings. They
# are marked once, at the fork: comparing pids would cost a system call at each map and register access.
os.register_at_fork(before=_at_fork, after_in_child=_after_fork_in_child, after_in_parent=_at_fork)


def forked_error(what: str, pid: int) -> ForkedError:
    """The error for the use, in a forked child, of what process ``pid`` made."""
    return ForkedError(f"{what} belongs to process {pid}, not to its forked child; open one of your own")


def character_device(fd: int) -> tuple[int, str]:
    """An fd's number and the ``major:minor`` of its device node; empty if it is not of a character device."""
    fd = operator.index(fd)
    try:
        status = os.fstat(fd)
    except OverflowError:
        raise ValueError(f"{fd} is not a file descriptor") from None
    except OSError as error:
        raise ioctl_error("fstat", error.errno or 0, f"fd {fd}") from None
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return fd, number if stat.S_ISCHR(status.st_mode) else ""


def check_unowned(fd: int) -> None:
    """Raise ValueError if an existing object owns this fd or, in a forked child, a copy of it."""
    for file, reference in list(_open.values()):
        if fd in (file.fd, file.inherited):
            raise ValueError(f"fd {fd} belongs to {reference()!r}, which closes it; give a copy: os.dup({fd})")


def owners(kind: type[Handle]) -> dict[int, str]:
    """The open handles of a kind, in words, by their fds."""
    found = ((file.fd, reference()) for file, reference in list(_open.values()))
    return {fd: repr(handle) for fd, handle in found if fd >= 0 and isinstance(handle, kind)}


class Handle(Closing):
    """An owner of one fd.

    Closing is safe to repeat. In a forked child it closes the child's copy of the fd and nothing else. What is
    dropped without being closed is closed with a `ResourceWarning`.

    Attributes:
        pid: The process that made it.
    """

    __slots__ = ("__weakref__", "_file", "_forked", "_forks", "pid")

    pid: int

    def __init__(self, fd: int = -1) -> None:
        self._forked = False
        self._forks = _forks
        self.pid = os.getpid()
        self._file = ioctls.new_file()
        _open[id(self)] = (self._file, weakref.ref(self))
        self._file.fd = fd

    def _open_with(self, call: Callable[..., None], *arguments: object) -> None:
        """Open its file. If a signal handler raises, the file is closed again, as the caller never gets this object."""
        try:
            call(self._file, *arguments)
        except BaseException:
            self._close_fd()
            raise

    def fileno(self) -> int:
        """The file descriptor.

        Raises:
            ClosedError: It has been closed.
            ForkedError: This is a forked child.
        """
        return self._live().fd

    def _live(self) -> ioctls.File:
        """The owner of its fd, for a call; raises as `fileno` does."""
        if self._file.fd < 0:
            if self.closed:
                raise ClosedError(f"this {self._what()} is closed")
            raise forked_error(f"this {self._what()}", self.pid)
        return self._file

    def _what(self) -> str:
        """The object's name in error messages."""
        return type(self).__name__

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._file.fd < 0 and self._file.inherited < 0

    @property
    def in_child(self) -> bool:
        """Whether this process is a forked child of the one that owns it."""
        return self._forked

    @property
    def _left_to_a_child(self) -> bool:
        """Whether a forked child may have a copy of its fd."""
        return self._forks != _forks

    def _mark_forked(self) -> None:
        """This process is a forked child: from now on only `close` does something."""
        self._forked = True
        ioctls.file_forked(self._file)

    def _close_fd(self) -> None:
        # Registered meanwhile: the close may take long, and another thread may fork.
        ioctls.file_close(self._file)
        _open.pop(id(self), None)

    def close(self) -> None:
        """Close the fd. Does nothing the second time."""
        self._close_fd()

    def __del__(self) -> None:
        # The attribute is missing where __init__ failed.
        if not hasattr(self, "_file") or self.closed:
            _open.pop(id(self), None)
            return
        try:
            # No warning in a forked child: the parent may still close the object.
            if not self.in_child:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            self._close_fd()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {max(self._file.fd, self._file.inherited)}"
        return f"<{type(self).__name__} {state}>"
