"""The record of claims under ``/run/pyiommufd``: what to restore when the process that claimed is gone.

One JSON file a claim, written to disk before each step that it describes. Everything here is called with the
lock of `locked` held.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from ..errors import ClaimError
from . import sysfs

RUN = Path("/run/pyiommufd")


class State(StrEnum):
    """What a journal entry stands for."""

    IN_PROGRESS = "in progress"
    """The claim or its release is being carried out by the process named."""
    SESSION = "session"
    """The claim is held by the process named, and ends with it."""
    KEPT = "kept"
    """The claim lasts until it is released."""


@dataclass(slots=True)
class Before:
    """How a device was before the claim touched it."""

    name: str
    subsystem: str
    sys_path: str
    driver: str | None
    driver_override: str | None


@dataclass(slots=True)
class Entry:
    """One claim. ``start_time``, in clock ticks since boot, tells the process from a later one of its pid."""

    id: str
    state: State
    pid: int
    start_time: int
    groups: list[int]
    devices: list[Before] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether the process that wrote it is still there."""
        return start_time(self.pid) == self.start_time


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, or None where none of that pid is running."""
    text = sysfs.read(Path("/proc") / str(pid) / "stat")
    if not text:
        return None
    # proc_pid_stat(5): the command may hold blanks and brackets, and ends at the last bracket; fields 3 and 22.
    fields = text.rpartition(")")[2].split()
    # One that has ended and that its parent has not waited for is there, and does nothing any more.
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other claims, releases and recoveries of this machine waiting.

    Raises:
        ClaimError: The folder cannot be used, mostly for want of root.
    """
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ClaimError(
            f"cannot write the record of claims in {run}: {error.strerror}; claiming takes root"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write(run: Path, entry: Entry) -> None:
    """Put an entry on record, on disk before this returns, whole or not at all."""
    path = run / f"{entry.id}.json"
    draft = path.with_suffix(".draft")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(asdict(entry), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(run: Path, entry: Entry) -> None:
    """Take an entry off the record."""
    (run / f"{entry.id}.json").unlink(missing_ok=True)


def entries(run: Path) -> list[Entry]:
    """Everything on record.

    Raises:
        ClaimError: A file there is none of ours.
    """
    found = []
    for path in sorted(run.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            data["state"] = State(data["state"])
            data["devices"] = [Before(**device) for device in data["devices"]]
            found.append(Entry(**data))
        except (ValueError, TypeError, KeyError) as error:
            raise ClaimError(f"{path} is no record of a claim ({error}); look at it and remove it") from error
    return found
