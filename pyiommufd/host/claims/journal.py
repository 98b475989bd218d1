"""The journal of claims: one JSON file each under ``/run/pyiommufd``, for recovery after the claiming process died.

It is written to disk before each step that it describes. Functions that change it require the lock of `locked`.
Only root can access the folder and its files: anybody who could write them could make root bind and unbind devices.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyiommufd.errors import ClaimError, Fix
from pyiommufd.host import durable
from pyiommufd.host.claims import claim_locks, record_migration
from pyiommufd.host.claims.record import ClaimRecord, ClaimState, boot_id, parse, start_time
from pyiommufd.host.namespaces import namespace

RUN = Path("/run/pyiommufd")

LOCK_SECONDS = 300.0
"""How long a claim waits for others to be carried out."""

_SLICE = 0.1  # seconds between looks at whether the caller still wants to wait

_log = logging.getLogger(__name__)


class NoAccessError(ClaimError):
    """Only root may look at the record."""


@contextlib.contextmanager
def locked(seconds: float | None = None, check: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Keep other claims, releases and recoveries of this machine waiting; they come in the order in which they ask.

    Args:
        seconds: How long to wait for others; None: `LOCK_SECONDS`.
        check: Called while it waits; what it raises ends that.

    Returns:
        The lock's file descriptor, for a process that goes on when this one is killed: others wait for it as well.

    Raises:
        ClaimError: The folder cannot be used, mostly for want of root; or another holds the lock for too long.
    """
    lock = RUN / "lock"
    try:
        RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(RUN, os.lstat(RUN), stat.S_ISDIR)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ClaimError(f"cannot write the record of claims in {RUN}: {error.strerror}; this takes root") from error
    queued = _Queued(fd)
    try:
        _check_owner(lock, os.fstat(fd), stat.S_ISREG)
        queued.wait(lock, LOCK_SECONDS if seconds is None else seconds, check)
        with contextlib.suppress(OSError):  # e.g. no space: the pid is used in messages only
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        try:
            try:
                _clear()
            except OSError as error:
                raise ClaimError(f"cannot write the record of claims in {RUN}: {error}") from error
            yield fd
        finally:
            os.ftruncate(fd, 0)
    finally:
        queued.leave()


class _Queued:
    """This process's place in the kernel's queue for a lock: who asked first is woken first.

    The kernel's wait can neither be limited in time nor left for a look at signals, so a thread waits.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._there = threading.Event()
        self._guard = threading.Lock()
        self._left = False
        self._waits = False

    def wait(self, path: Path, seconds: float, check: Callable[[], None]) -> None:
        """Wait for the lock.

        Raises:
            ClaimError: It takes too long.
        """
        check()
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        thread = threading.Thread(target=self._wait, name="pyiommufd lock", daemon=True)
        self._waits = True
        try:
            thread.start()
        except RuntimeError:
            self._waits = False
            raise
        end = time.monotonic() + seconds
        while not self._there.wait(_SLICE):
            check()
            if time.monotonic() > end:
                pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
                who = f"this process (pid {pid})" if pid == str(os.getpid()) else f"process {pid}"
                raise ClaimError(
                    f"another claim, release or recovery has not ended within {seconds:g} s: {path} is locked "
                    f"by {who}, or by its worker process, which blocks in an unbind"
                )

    def _wait(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        finally:
            with self._guard:
                self._waits = False
                if self._left:
                    self._close()
                self._there.set()

    def leave(self) -> None:
        """Close the file: at once, or once the abandoned wait for the lock has returned."""
        with self._guard:
            self._left = True
            if not self._waits:
                self._close()

    def _close(self) -> None:
        # Unlock explicitly: a child or a worker may have the file open as well, which would keep the lock held.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


def _check_owner(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Refuse a record, its folder or the lock if users other than root can write it.

    Raises:
        ClaimError: They can.
    """
    if not is_kind(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise ClaimError(
            f"{path} is not safe to use as the record of claims: it has to be root's, and nobody else may write it"
            f" (owner {status.st_uid}, mode {stat.filemode(status.st_mode)}); look at it and remove it"
        )


def _clear() -> None:
    """Remove unfinished drafts and records of earlier boots, and merge version 1 files."""
    durable.remove_drafts(RUN)
    for path in _files():
        with contextlib.suppress(ClaimError):
            record = _read(path)
            if record is not None and record.boot != boot_id() and record.state is not ClaimState.NEWER:
                _log.warning("%s is of an earlier boot, whose claims ended with it: removed", path)
                path.unlink(missing_ok=True)
    record_migration.migrate(RUN / "kept", lambda: read_all()[0], write)


def write(record: ClaimRecord) -> None:
    """Put a claim on record, on disk before this returns, whole or not at all; with the lock of one of this process."""
    path = _path(record.id)
    durable.write(path, record.text(), 0o600)
    if record.pid == os.getpid() and record.state is not ClaimState.KEPT:
        claim_locks.acquire(path)
    else:
        claim_locks.release(path)


def remove(record: ClaimRecord) -> None:
    """Take a claim off the record."""
    path = _path(record.id)
    path.unlink(missing_ok=True)
    claim_locks.release(path)


def records() -> list[ClaimRecord]:
    """All claims on record, the oldest first.

    Raises:
        ClaimError: A file there is none of ours, or others can write it.
        NoAccessError: Only root may look.
    """
    found, errors = read_all()
    if errors:
        raise errors[0]
    return found


def readable_records() -> list[ClaimRecord]:
    """All claims on record; none for a user, who may not look.

    Raises:
        ClaimError: As `records`.
    """
    try:
        return records()
    except NoAccessError:
        return []


def is_readable() -> bool:
    """Whether this user may look at what is on record."""
    try:
        records()
    except NoAccessError:
        return False
    return True


def read_all() -> tuple[list[ClaimRecord], list[ClaimError]]:
    """All claims on record, the oldest first, and what is wrong with the other files.

    Raises:
        NoAccessError: Only root may look.
    """
    found, errors = [], []
    boot = boot_id()
    for path in _files():
        try:
            record = _read(path)
        except ClaimError as error:
            errors.append(error)
            continue
        if record is not None and record.boot == boot:
            found.append(record)
    return sorted(found, key=lambda record: record.created), errors


def find(claim: str) -> ClaimRecord | None:
    """The claim of that id, or None where it is not on record any more."""
    return _read(_path(claim))


def is_alive(record: ClaimRecord) -> bool:
    """Whether the process whose claim it is still runs."""
    if record.pid_namespace in (None, namespace("self", "pid")):
        return start_time(record.pid) == record.start_time
    return claim_locks.is_held(_path(record.id))  # a pid of another PID namespace has no meaning here


def is_own(record: ClaimRecord) -> bool:
    """Whether it is a claim that this process holds, or a kept one, which is no process's."""
    if record.state is ClaimState.KEPT:
        return True
    own = record.pid == os.getpid() and record.pid_namespace in (None, namespace("self", "pid"))
    return record.state is ClaimState.SESSION and own


def describe_owner(record: ClaimRecord) -> str:
    """Whose a claim is, for messages."""
    if record.state is ClaimState.NEWER:
        return "a newer pyiommufd: use that one"
    if record.state is ClaimState.KEPT:
        return "a kept claim"
    if not record.pid:
        return "a claim that was not given back completely"
    if not is_alive(record):
        return "a process that has ended"
    if record.pid_namespace not in (None, namespace("self", "pid")):
        return f"process {record.pid} of another PID namespace"
    return f"this process (pid {record.pid})" if record.pid == os.getpid() else f"process {record.pid}"


def way_to_release(record: ClaimRecord) -> Fix | None:
    """What gives back the devices of a claim that no process works with; None: it is not for this process to do."""
    if record.state is ClaimState.NEWER:
        return None
    if record.state is ClaimState.KEPT or not record.pid:
        python, command = f"release([{record.example!r}])", f"pyiommufd release {record.example}"
        does = "gives it back" if record.state is ClaimState.KEPT else "continues it"
        return Fix(f"{python} {does}", f"{command} {does}")
    return None if is_alive(record) else Fix("recover() gives it back", "pyiommufd recover gives it back")


def _path(claim: str) -> Path:
    return RUN / f"{claim}.json"


def _files() -> list[Path]:
    try:
        names = os.listdir(RUN)  # noqa: PTH208 (glob passes over a folder that it may not read)
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NoAccessError(f"the record of claims in {RUN} is root's: looking at it takes root") from None
    return [RUN / name for name in sorted(names) if name.endswith(".json")]


def _read(path: Path) -> ClaimRecord | None:
    """A claim on record; None where it has been removed meanwhile.

    Raises:
        ClaimError: It is none, or others can write it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClaimError(f"{path} is not a record of a claim ({error.strerror}); look at it and remove it") from error
    with open(fd, "rb") as file:
        _check_owner(path, os.fstat(fd), stat.S_ISREG)
        try:
            record = parse(json.loads(file.read()))
        except (ValueError, RecursionError) as error:
            raise ClaimError(f"{path} is not a record of a claim ({error}); look at it and remove it") from error
    if record.state is ClaimState.NEWER:
        _log.debug("%s is of a newer version", path)
        record.id = path.stem
    return record
