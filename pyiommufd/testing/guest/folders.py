"""Temporary folders of guests, and the removal of those whose maker was killed before it could remove them.

Each is locked, by flock() of itself, as long as its maker lives, and QEMU, which inherits the file descriptor. The
kernel gives the lock up however these end: a folder whose lock is free was left over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

# The names that earlier versions used are left alone: a living guest of theirs holds no lock.
WORK = "pyiommufd-machine-"
"""What the name of a folder begins with that is of no use without its guest."""
RESULTS = "pyiommufd-guest-results-"
"""Of one that the user may want: left over, it is removed only if nothing is in it."""


def make_folder(prefix: str) -> tuple[Path, int]:
    """Make a temporary folder that only this user can enter, and remove those that were left over.

    Args:
        prefix: `WORK` or `RESULTS`.

    Returns:
        The folder, and the open file descriptor that holds its lock.
    """
    _remove_left_over()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        try:
            lock = _open(folder)
        except FileNotFoundError:
            continue  # as below, and it was quicker
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another process found it before it was locked, and is removing it
        except OSError:
            return folder, lock  # a file system without locks: nobody will take it for left over
        else:
            if folder.exists():
                return folder, lock
        os.close(lock)


def _remove_left_over() -> None:
    for prefix, remove in ((WORK, shutil.rmtree), (RESULTS, os.rmdir)):
        for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                lock = _open(folder)
                stack.callback(os.close, lock)
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(folder)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
