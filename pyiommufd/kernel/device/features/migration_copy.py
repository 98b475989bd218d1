"""One save or load of a device's migration data: the session that it begins and ends."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from pyiommufd import diagnose
from pyiommufd.errors import (
    ClosedError,
    ForkedError,
    IOMMUFDError,
    MigrationError,
    MigrationPathError,
    UnsupportedError,
)
from pyiommufd.kernel.device.features.migration_states import WITH_DATA, MigrationState
from pyiommufd.kernel.device.features.migration_stream import CHUNK, MigrationStream

if TYPE_CHECKING:
    from pyiommufd.kernel.device.features.migration import Migration

_S = MigrationState
_T = TypeVar("_T")

_PRE_COPY_OF = {_S.RUNNING: _S.PRE_COPY, _S.RUNNING_P2P: _S.PRE_COPY_P2P}


class MigrationCopy:
    """One save or load of a device: the session that it begins and ends.

    It changes the device's state only where it began the session, and nothing else has ended that.

    As a context manager it gives up where an exception comes. It can be entered several times at once, so that an
    exception from a signal handler in the middle of that has it done again.

    Args:
        migration: That of the device.
        resumes: Whether the device takes in the data; else they are read from it.
    """

    __slots__ = ("_before", "_begun", "_migration", "_stream", "_told")

    def __init__(self, migration: Migration, *, resumes: bool) -> None:
        self._migration = migration
        self._stream = MigrationStream(migration._device.name, writable=resumes)
        self._before: MigrationState | None = None  # None: nothing has been done to the device
        self._begun = False
        self._told: BaseException | None = None

    def begin(self, *, precopy: bool = False) -> None:
        """Begin the session; refused where there is one."""
        migration = self._migration
        with migration._lock:
            state = migration.state
            wanted = _S.RESUMING if self._stream.writable else _S.STOP_COPY
            if precopy:
                wanted = _PRE_COPY_OF.get(state, wanted)
            if state in WITH_DATA:
                way = "reset()" if state == _S.RESUMING else f"set_state(MigrationState.{WITH_DATA[state].name})"
                raise MigrationPathError(
                    f"{migration._device.name} is {state.name}: a save or load of it is under way, or was begun with "
                    f"set_state(); wait for its end, or give it up: {way}",
                    state,
                    wanted,
                )
            migration._path(state, wanted)
            self._before = state
            migration._change(wanted, self._stream)
            self._begun = True

    def pieces(self, *, precopy: bool) -> Iterator[tuple[bytes, MigrationState, int | None]]:
        """The device's data in pieces, with its state and about how much is left."""
        migration = self._migration
        self.begin(precopy=precopy)
        state = migration.state
        while state in _PRE_COPY_OF.values() and (chunk := self._read()):
            info = self._of_session(migration.precopy_info)
            yield chunk, state, info.initial_bytes + info.dirty_bytes
            if not info.initial_bytes:
                break
        self._set_state(_S.STOP_COPY)
        left: int | None = None
        with contextlib.suppress(UnsupportedError):  # before Linux 6.2
            left = migration.data_size
        chunk = self._read()
        while chunk:
            # Some devices' estimate counts what was read before they were stopped; only the end is certain.
            following = self._read()
            if not following:
                left = 0
            elif left is not None:
                left = max(len(following), left - len(chunk))
            yield chunk, _S.STOP_COPY, left
            chunk = following

    def write(self, data: bytes) -> int:
        """Have the device take in data; how many bytes these were."""
        return self._of_session(lambda: self._stream.write(data))

    def end(self) -> None:
        """End the session; the device is in STOP then."""
        self._set_state(_S.STOP)

    def give_up(self, error: BaseException) -> None:
        """End the session, unless it is over; have the exception say where the device is."""
        if self._before is None or self._told is error:
            return
        migration = self._migration
        with contextlib.suppress(IOMMUFDError), migration._lock:  # the first refusal is the one to tell
            state = migration.state
            is_live = self._stream in migration._streams
            if self._stream.writable and (is_live or state == _S.ERROR):
                migration._device.reset()
            elif is_live or not (self._begun or state in WITH_DATA):
                migration.set_state(self._before)
        with contextlib.suppress(IOMMUFDError):
            state = migration.state
            if isinstance(error, MigrationError):
                error.state = state
            else:
                error.add_note(f"{migration._device.name} is {state.name} now")
        self._told = error

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.give_up(error)

    def _read(self) -> bytes:
        return self._of_session(lambda: self._stream.read(CHUNK))

    def _set_state(self, state: MigrationState) -> None:
        with self._migration._lock:
            self._check()
            self._migration.set_state(state)

    def _of_session(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except ForkedError:
            raise
        except ClosedError:
            self._check()
            raise

    def _check(self) -> None:
        """Raise MigrationError where something else has ended the session."""
        with self._migration._lock:
            state = self._migration.state
            if self._stream not in self._migration._streams:
                request = "write" if self._stream.writable else "read"
                error = diagnose.data_error(request, errno.ENODEV, self._migration._device.name)
                error.state = state
                raise error from None
