"""The record of claims under ``/run/pyiommufd``: what to restore when the process that claimed is gone.

One JSON file a claim, written to disk before each step that it describes. What changes it is called with the lock of
`locked` held. Folder and files are root's alone: whoever could write them could have root bind and unbind as they like.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from ...errors import ClaimError
from .. import sysfs

RUN = Path("/run/pyiommufd")

LOCK_SECONDS = 300.0
"""How long a claim waits for others to be carried out."""

_LOCK_SLICES = (0.02, 0.25)  # seconds between attempts, the first and the longest: many may wait

_log = logging.getLogger(__name__)


class NoAccessError(ClaimError):
    """Only root may look at the record."""


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
    """How a device was before the claim touched it.

    Attributes:
        name: Its name.
        subsystem: Its bus.
        sys_path: Its folder.
        driver: The driver that it was on, or None.
        driver_override: The override that was set, or None.
        identity: Vendor and device, such as ``1234:11e8``, or None: another device in its place is left alone.
        numvfs: How many virtual functions it had; None: it can have none.
        autoprobe: Whether new virtual functions go to their drivers by themselves; None as above.
        vfs: Those virtual functions.
    """

    name: str
    subsystem: str
    sys_path: str
    driver: str | None
    driver_override: str | None
    identity: str | None = None
    numvfs: int | None = None
    autoprobe: bool | None = None
    vfs: list[Before] = field(default_factory=list)

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """From what `dataclasses.asdict` made of one.

        Raises:
            TypeError: It is something else.
        """
        return cls(**{**data, "vfs": [cls.parse(function) for function in data.get("vfs", ())]})


def boot_id() -> str:
    """What tells this boot from others: a reboot forgets every binding, and with it what there was to restore."""
    return sysfs.read(sysfs.PROC / "sys/kernel/random/boot_id") or ""


@dataclass(slots=True)
class Entry:
    """One claim.

    Attributes:
        id: Its name, and that of its file.
        state: What it stands for.
        pid: The process whose it is.
        start_time: When that has started, in clock ticks since boot, which tells it from a later one of its pid.
        groups: The IOMMU groups.
        devices: What is to be restored, in the order in which it was touched.
        wanted: The names of the devices that were asked for.
        boot: The boot that it is of.
        created: When it was begun, in nanoseconds since boot.
        doing: The step that was about to be taken when it was written last.
        waiting: By device, the processes that wait in the kernel for a step of it to end: pid and start time.
    """

    id: str
    state: State
    pid: int
    start_time: int
    groups: list[int]
    devices: list[Before] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    boot: str = field(default_factory=boot_id)
    created: int = 0
    doing: str = ""
    waiting: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def begin(cls, groups: Iterable[int] = (), wanted: Iterable[str] = ()) -> Self:
        """The entry of a claim that this process is about to make."""
        pid = os.getpid()
        return cls(
            id=uuid.uuid4().hex,
            state=State.IN_PROGRESS,
            pid=pid,
            start_time=start_time(pid) or 0,
            groups=list(groups),
            wanted=list(wanted),
            created=time.monotonic_ns(),
        )

    def take_over(self) -> None:
        """Make it this process's, which is about to undo it."""
        self.state = State.IN_PROGRESS
        self.pid = os.getpid()
        self.start_time = start_time(self.pid) or 0

    @property
    def alive(self) -> bool:
        """Whether the process that wrote it is still there."""
        return start_time(self.pid) == self.start_time

    @property
    def names(self) -> set[str]:
        """The names of the devices that it has: those asked for, those that it moved, and their virtual functions."""
        functions = {function.name for before in self.devices for function in before.vfs}
        return {*self.wanted, *(before.name for before in self.devices), *functions}

    @property
    def stuck(self) -> set[str]:
        """The names of the devices that the kernel is still at, as a process waits for what it was asked earlier."""
        return {name for name, (pid, started) in self.waiting.items() if pid and start_time(pid) == started}

    @property
    def who(self) -> str:
        """Whose it is, for messages."""
        if self.state is State.KEPT:
            return "`pyiommufd claim`; `pyiommufd release` gives it back"
        return f"process {self.pid}" if self.alive else "a process that is gone; `pyiommufd recover` gives it back"


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
def locked(run: Path, seconds: float | None = None, check: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Keep other claims, releases and recoveries of this machine waiting.

    Args:
        run: The folder of the record.
        seconds: How long to wait for others; None: `LOCK_SECONDS`.
        check: Called while it waits; what it raises ends that.

    Returns:
        The lock's file descriptor, for a process that goes on when this one is killed: others wait for it as well.

    Raises:
        ClaimError: The folder cannot be used, mostly for want of root; or another holds the lock for too long.
    """
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(run, os.lstat(run), stat.S_ISDIR)
        fd = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ClaimError(
            f"cannot write the record of claims in {run}: {error.strerror}; claiming takes root"
        ) from error
    try:
        _check_owner(run / "lock", os.fstat(fd), stat.S_ISREG)
        _lock(fd, run / "lock", LOCK_SECONDS if seconds is None else seconds, check)
        try:
            _clear(run)
            yield fd
        finally:
            os.ftruncate(fd, 0)
            # By name: a helper that waits in the kernel has the file open as well, and would keep the lock.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path, seconds: float, check: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    pause, longest = _LOCK_SLICES
    while True:
        check()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise ClaimError(
                    f"another claim, release or recovery has not ended within {seconds:g} s: {path} is locked"
                    f" by process {os.pread(fd, 32, 0).decode(errors='replace').strip() or 'unknown'}, or by one that"
                    " waits in the kernel for a device that it was to unbind"
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, longest)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _check_owner(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """What others can write is no record to act on as root.

    Raises:
        ClaimError: They can.
    """
    if not is_kind(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise ClaimError(
            f"{path} is not safe to use as the record of claims: it has to be root's, and nobody else may write it"
            f" (owner {status.st_uid}, mode {stat.filemode(status.st_mode)}); look at it and remove it"
        )


def _clear(run: Path) -> None:
    """Drop what was being written when its process died, and the entries of earlier boots."""
    for path in run.glob("*.draft"):
        path.unlink(missing_ok=True)
    for path in _files(run):
        with contextlib.suppress(ClaimError):
            if (entry := _read(path)) and entry.boot != boot_id():
                _log.warning("%s is of an earlier boot, whose claims ended with it: removed", path)
                path.unlink(missing_ok=True)


def write(run: Path, entry: Entry) -> None:
    """Put an entry on record, on disk before this returns, whole or not at all."""
    path = run / f"{entry.id}.json"
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
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
    """Everything on record, the oldest first.

    Raises:
        ClaimError: A file there is none of ours, or others can write it.
        NoAccessError: Only root may look.
    """
    found, errors = read_all(run)
    if errors:
        raise errors[0]
    return found


def read_all(run: Path) -> tuple[list[Entry], list[ClaimError]]:
    """Everything on record, the oldest first, and what is wrong with the other files.

    Raises:
        NoAccessError: Only root may look.
    """
    found, errors = [], []
    boot = boot_id()
    for path in _files(run):
        try:
            entry = _read(path)
        except ClaimError as error:
            errors.append(error)
            continue
        if entry is not None and entry.boot == boot:
            found.append(entry)
    return sorted(found, key=lambda entry: entry.created), errors


def find(run: Path, entry_id: str) -> Entry | None:
    """The entry of that name, or None where there is none any more."""
    return _read(run / f"{entry_id}.json")


def _files(run: Path) -> list[Path]:
    try:
        names = os.listdir(run)  # noqa: PTH208 (glob passes over a folder that it may not read)
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NoAccessError(f"the record of claims in {run} is root's: looking at it takes root") from None
    return [run / name for name in sorted(names) if name.endswith(".json")]


def _read(path: Path) -> Entry | None:
    """An entry; None where it has been removed meanwhile.

    Raises:
        ClaimError: It is none, or others can write it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClaimError(f"{path} is no record of a claim ({error.strerror}); look at it and remove it") from error
    with open(fd, "rb") as file:
        _check_owner(path, os.fstat(fd), stat.S_ISREG)
        try:
            data = json.loads(file.read())
            data["state"] = State(data["state"])
            data["devices"] = [Before.parse(device) for device in data["devices"]]
            return Entry(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ClaimError(f"{path} is no record of a claim ({error}); look at it and remove it") from error
