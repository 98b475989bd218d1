"""Which claims have a living process: by a lock on the claim's record, which dies with the process.

It tells that across PID namespaces, where a process's number says nothing. A forked child does not keep it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_held: dict[Path, int] = {}


def hold(record: Path) -> None:
    """Have the lock of a record, as its file is now, until `let_go`, or the end of this process.

    Raises:
        OSError: The file cannot be opened.
    """
    fd = os.open(record, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    fcntl.flock(fd, fcntl.LOCK_EX)
    let_go(record)  # that of the file that was there before
    _held[record] = fd


def let_go(record: Path) -> None:
    """Have the lock no more, if this process has it."""
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
