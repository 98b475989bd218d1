"""A lock between processes, for what only one of them is to make."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from pyiommufd.testing.provision.progress import Progress


@contextlib.contextmanager
def locked(path: Path, progress: Progress, waiting_for: str) -> Iterator[None]:
    """Hold a lock, by flock() of a file, which the kernel gives back if this process dies.

    Args:
        path: The file; it and its folder are made.
        progress: Is told if another process has the lock.
        waiting_for: What that process is then working on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.step(f"waiting for another process that is working on {waiting_for}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
