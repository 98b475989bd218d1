"""Detects which claims belong to a running process, by a lock on the record that the kernel drops at process exit.

This works across PID namespaces, where a pid has no meaning. A forked child does not keep the lock.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_held: dict[Path, int] = {}


def acquire(record: Path) -> None:
    """Take the lock of a record's current file, until `release` or the end of this process.

    Raises:
        OSError: The file cannot be opened.
    """
    fd = os.open(record, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    fcntl.flock(fd, fcntl.LOCK_EX)
    release(record)  # that of the file that was there before
    _held[record] = fd


def release(record: Path) -> None:
    """Release the lock, if this process holds it."""
    fd = _held.pop(record, None)
    if fd is not None:
        os.close(fd)


def is_held(record: Path) -> bool:
    """Whether a process has the lock, this one or another."""
    if record in _held:
        return True
    try:
        fd = os.open(record, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _forget() -> None:
    for fd in _held.values():
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
