"""Durable changes: small files that are complete or absent after a power cut, and `commit`.

Thread safety: concurrent writers of one file need a lock of their own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

DRAFT = ".draft"
"""What the name of a file ends with that was not finished."""

_log = logging.getLogger(__name__)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file; it is on disk before this returns. Whatever happens meanwhile, the old or the new one is there.

    Args:
        path: The file; its folder is made where it is not there.
        text: What it is to hold.
        mode: Its permissions, whatever the umask.

    Raises:
        OSError: What the kernel answered.
    """
    _log.debug("write %s", path)
    make_folder(path.parent)
    draft = path.with_name(path.name + DRAFT)
    draft.unlink(missing_ok=True)
    # O_EXCL: do not write through a link that somebody else has put there.
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, mode)
        file.write(text)
        file.flush()
        os.fsync(fd)
    draft.replace(path)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there; it is gone from the disk before this returns.

    Raises:
        OSError: What the kernel answered.
    """
    _log.debug("remove %s", path)
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def remove_drafts(folder: Path) -> None:
    """Remove what was not finished."""
    for draft in folder.glob(f"*{DRAFT}"):
        remove(draft)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that they outlive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o755, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk (fsync)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def commit(what: str, change: Callable[[], None]) -> None:
    """Make a change: the one place that every change to the machine, and every write of its record, goes through.

    They come one after the other, each written to the disk, or taken by the kernel, when this returns. A process that
    is killed has made all the changes before some call of this function and none after.
    """
    _log.debug("%s", what)
    change()
