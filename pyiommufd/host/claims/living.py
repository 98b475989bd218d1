"""Which claims have a living process: by a lock that dies with it, whatever PID namespace it is in.

A file for each such claim, locked by flock(2). A forked child does not keep the lock: it closes the file at once.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_held: dict[Path, int] = {}


def hold(run: Path, claim: str) -> None:
    """Have the lock of a claim until `let_go`, or the end of this process.

    Raises:
        OSError: The file cannot be made.
    """
    path = _path(run, claim)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    _held[path] = fd


def let_go(run: Path, claim: str) -> None:
    """Remove the lock, whoever has left it; only where nobody lives who has it but this process."""
    path = _path(run, claim)
    path.unlink(missing_ok=True)
    fd = _held.pop(path, None)
    if fd is not None:
        os.close(fd)


def is_held(run: Path, claim: str) -> bool:
    """Whether a process has it, this one or another."""
    path = _path(run, claim)
    if path in _held:
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _path(run: Path, claim: str) -> Path:
    return run / f"{claim}.living"


def _forget() -> None:
    for fd in _held.values():
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
