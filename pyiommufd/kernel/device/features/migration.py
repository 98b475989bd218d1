"""Migration of a bound device: its state saved to a file, or loaded from one."""

from __future__ import annotations

import contextlib
import errno
import io
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pyiommufd import diagnose, uapi
from pyiommufd.errors import ClosedError, IoctlError, IOMMUFDError, MigrationPathError, UnsupportedError
from pyiommufd.kernel.device.features.feature import DeviceFeature, Feature
from pyiommufd.kernel.device.features.migration_copy import MigrationCopy
from pyiommufd.kernel.device.features.migration_states import (
    WITH_DATA,
    MigrationFlag,
    MigrationState,
    no_path,
    shortest_path,
)
from pyiommufd.kernel.device.features.migration_stream import CHUNK, MigrationStream
from pyiommufd.kernel.memory.arguments import check_bool, check_progress
from pyiommufd.printable import OneLine
from pyiommufd.uapi import device_ioctls

if TYPE_CHECKING:
    import asyncio

    from pyiommufd.kernel.device.device import Device

_STATE = struct.Struct("=Ii")  # struct vfio_device_feature_mig_state
_NUMBER = struct.Struct("=Q")  # struct vfio_device_feature_migration, and vfio_device_feature_mig_data_size

_S = MigrationState


@dataclass(frozen=True, slots=True, repr=False)
class PrecopyInfo(OneLine):
    """How much a device has to be read of while it is in a PRE_COPY state (struct vfio_precopy_info). Estimates.

    Attributes:
        initial_bytes: Bytes left of what it had at the beginning. Stopped before this is 0, it may take longer.
        dirty_bytes: Bytes of what has changed since it was read.
        reinit: Whether there is new initial data; always False where the kernel does not tell.
    """

    initial_bytes: int
    dirty_bytes: int
    reinit: bool

    def _line(self) -> str:
        return f"initial {self.initial_bytes}, dirty {self.dirty_bytes} bytes{', reinit' if self.reinit else ''}"


@dataclass(frozen=True, slots=True, repr=False)
class MigrationProgress(OneLine):
    """How far a copy of a device's state is.

    Attributes:
        state: The device's state: whether it still runs.
        copied: Bytes so far.
        left: About how many bytes are left of this state; None: not known.
    """

    state: MigrationState
    copied: int
    left: int | None

    def _line(self) -> str:
        return f"{self.state.name}, {self.copied} bytes{'' if self.left is None else f', about {self.left} left'}"


class SupportsWrite(Protocol):
    """What bytes are written to: an open file, pipe or socket file, or one that compresses."""

    def write(self, data: bytes, /) -> object:
        """Write bytes; how many it took, or None for all."""


class SupportsRead(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes | None:
        """Up to so many bytes; none at the end."""


_T = TypeVar("_T")


class Migration:
    """The migration of a bound device: its state moved to another device of its kind. Made by `Device.migration`.

    Only the device's own state is saved: not the memory that it does DMA to, nor what it is attached to.

    Thread safety: everything here may be used from any thread. States are changed one after the other, under the lock
    of the iommufd; the data are copied without it. A device has one save or load at a time: another is refused. One
    whose session something else ends meanwhile (a reset, a change of state) fails, and leaves the state as it is.
    """

    __slots__ = ("_device", "_streams", "_tells_reinit")

    def __init__(self, device: Device) -> None:
        self._device = device
        # The last one is that of the session; those before it are left by an exception from a signal handler.
        self._streams: list[MigrationStream] = []
        self._tells_reinit: bool | None = None

    # State

    @property
    def flags(self) -> MigrationFlag:
        """What the device can do (VFIO_DEVICE_FEATURE_MIGRATION).

        Raises:
            UnsupportedError: The device, or the vfio driver that it is on, knows no migration.
            IoctlError: The kernel refused for another reason.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        return MigrationFlag(_NUMBER.unpack(self._get(DeviceFeature.MIGRATION, _NUMBER.size))[0])

    @property
    def state(self) -> MigrationState:
        """The device's state (VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE), as it is now.

        Raises:
            UnsupportedError, IoctlError, ClosedError, ForkedError: As for `flags`.
        """
        with self._lock:
            state = MigrationState(_STATE.unpack(self._get(DeviceFeature.MIG_DEVICE_STATE, _STATE.size))[0])
            self._settle(state)
            return state

    def path(self, state: MigrationState) -> tuple[MigrationState, ...]:
        """The states that `set_state` takes the device through, that one included; none: it is in that state.

        Raises:
            MigrationPathError: There is no path: from or to ERROR, from STOP_COPY back to PRE_COPY, to a state that
                the device does not have.
            TypeError: That is no `MigrationState`.
            UnsupportedError, IoctlError, ClosedError, ForkedError: As for `flags`.
        """
        return self._path(self.state, state)

    def _path(self, now: MigrationState, state: MigrationState) -> tuple[MigrationState, ...]:
        if not isinstance(state, MigrationState):
            raise TypeError(f"a state is a MigrationState, not {type(state).__name__}")
        flags = self.flags
        path = shortest_path(now, state, flags)
        if path is None:
            raise MigrationPathError(f"{self._device.name}: {no_path(now, state, flags)}", now, state)
        return path

    def set_state(self, state: MigrationState) -> None:
        """Move the device to a state, through those that `path` tells (VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE).

        What is written to the device while it is RESUMING takes effect when it leaves that state. Out of RESUMING
        without all data, and out of ERROR, only `Device.reset` leads: to RUNNING.

        Raises:
            MigrationPathError: There is no path; the kernel has not been asked.
            MigrationError: The kernel refused. The device may be in a state on the way, which the exception tells.
            TypeError: That is no `MigrationState`.
            UnsupportedError, IoctlError, ClosedError, ForkedError: As for `flags`.
        """
        self._change(state, MigrationStream(self._device.name, writable=state == _S.RESUMING))

    def _change(self, state: MigrationState, stream: MigrationStream) -> None:
        """Move the device to a state; the stream is the one of the session that this begins, if it does."""
        with self._lock:
            before = self.state
            if not self._path(before, state):
                return
            # On the list before its fd is made: whatever exception comes, it is found there and closed.
            self._streams.append(stream)
            wanted = _STATE.pack(state, -1)
            try:
                device_ioctls.feature_files(
                    self._device._live(),
                    uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
                    uapi.VFIO_DEVICE_FEATURE_SET,
                    wanted,
                    fd_at=4,
                    made=stream._file,
                )
            except IoctlError as error:
                now = self.state
                raise diagnose.state_error(error.errno or 0, self._device.name, before, state, now) from None
            self._settle(state)

    # Data

    @property
    def stream(self) -> MigrationStream:
        """The device's data, while it is in PRE_COPY, PRE_COPY_P2P or STOP_COPY, or RESUMING.

        Raises:
            ClosedError: It is in another state; its stream, or the device, is closed; another process or object has it.
            UnsupportedError, IoctlError, ForkedError: As for `flags`.
        """
        with self._lock:
            state = self.state
            if not self._streams:
                why = "its stream is closed, or with another process or object" if state in WITH_DATA else "no stream"
                raise ClosedError(f"{self._device.name} is {state.name}: {why}")
            return self._streams[-1]

    def precopy_info(self) -> PrecopyInfo:
        """How much there is to read in a PRE_COPY state (VFIO_MIG_GET_PRECOPY_INFO).

        Raises:
            IoctlError: EINVAL: it is in STOP_COPY.
            io.UnsupportedOperation: It is RESUMING.
            ClosedError, UnsupportedError, ForkedError: As for `stream`.
        """
        with self._lock:
            if self._tells_reinit is None:
                # Until this is set the flags mean nothing. It holds until the device is closed.
                try:
                    self._device.feature(DeviceFeature.MIG_PRECOPY_INFOv2).set()
                    self._tells_reinit = True
                except UnsupportedError:
                    self._tells_reinit = False
        stream = self.stream
        try:
            flags, initial, dirty = device_ioctls.precopy_info(stream._open(writable=False))
        except IoctlError as error:
            stream._live()
            raise diagnose.precopy_error(error.errno or 0, self._device.name) from None
        return PrecopyInfo(initial, dirty, bool(self._tells_reinit and flags & uapi.VFIO_PRECOPY_INFO_REINIT))

    @property
    def data_size(self) -> int:
        """About how many bytes have to be read to save the device when it is stopped now.

        VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.

        Raises:
            UnsupportedError, IoctlError, ClosedError, ForkedError: As for `flags`.
        """
        return int(_NUMBER.unpack(self._get(DeviceFeature.MIG_DATA_SIZE, _NUMBER.size))[0])

    # Save and load

    def save(
        self,
        file: SupportsWrite,
        *,
        precopy: bool = False,
        progress: Callable[[MigrationProgress], object] | None = None,
    ) -> int:
        """Save the device's state; the device is in STOP then.

        When anything fails, also the file or the progress callback, the device goes back to the state it was in; a
        `MigrationError` says where it is, any other exception in a note. The file is flushed before the device is in
        STOP; what it does only when it is closed, as one that compresses, can still fail, and is the caller's.

        Args:
            file: Where the data are written, in binary: byte for byte the device's own. It is not closed.
            precopy: Let the device run while what it has at first is copied (PRE_COPY), and stop it then.
            progress: Called after each piece, of a MiB at most. An exception from it ends the copy.

        Returns:
            How many bytes that were.

        Raises:
            MigrationPathError: The device is in a state with data, by another save or load or by `set_state`; or in
                ERROR; or it knows no PRE_COPY.
            MigrationError: The device refused; or something else has reset it or changed its state meanwhile, and
                it is left as it is.
            TypeError, ValueError: That is no binary file to write to, or its ``write`` is not like one's.
            UnsupportedError, IoctlError, ClosedError, ForkedError: As for `flags`.
        """
        _check(file, "write", progress)
        check_bool(precopy, "precopy")
        copied = 0
        copy = MigrationCopy(self, resumes=False)
        with copy, copy, copy:  # an exception from a signal handler may interrupt what the first two do at the end
            for chunk, state, left in copy.pieces(precopy=precopy):
                _write(file, chunk)
                copied += len(chunk)
                if progress is not None:
                    progress(MigrationProgress(state, copied, left))
            _flush(file)
            copy.end()
        return copied

    async def save_async(
        self,
        file: SupportsWrite | asyncio.StreamWriter,
        *,
        precopy: bool = False,
        progress: Callable[[MigrationProgress], object] | None = None,
    ) -> int:
        """As `save`, in an asyncio event loop.

        Args:
            file: As for `save`, then written to in another thread; or an asyncio.StreamWriter.
            precopy: As for `save`.
            progress: As for `save`; called in the event loop.

        Returns:
            As `save`.

        Raises:
            asyncio.CancelledError: Cancelled; the device goes back as after a failure.
            MigrationPathError, MigrationError, TypeError, ValueError, UnsupportedError, IoctlError, ClosedError,
                ForkedError: As for `save`.
        """
        _check(file, "write", progress)
        check_bool(precopy, "precopy")
        copy, copied = MigrationCopy(self, resumes=False), 0
        try:
            pieces = copy.pieces(precopy=precopy)
            while (piece := await _in_thread(next, pieces, None)) is not None:
                chunk, state, left = piece
                await _write_async(file, chunk)
                copied += len(chunk)
                if progress is not None:
                    progress(MigrationProgress(state, copied, left))
            await _flush_async(file)
            await _in_thread(copy.end)
        except BaseException as error:
            await _in_thread(copy.give_up, error)
            raise
        return copied

    def load(self, file: SupportsRead, *, progress: Callable[[MigrationProgress], object] | None = None) -> int:
        """Load a state that was saved from a device of the same kind; the device is in STOP then.

        ``set_state(MigrationState.RUNNING)`` has it go on. When anything fails while it is RESUMING, also the file or
        the progress callback, the device is reset, as nothing else ends that: it is RUNNING then, with none of the
        data. A `MigrationError` says where it is, any other exception in a note.

        Args:
            file: Where the data are read, in binary, to its end. It is not closed.
            progress: Called after each piece, of a MiB at most. An exception from it ends the copy.

        Returns:
            How many bytes that were.

        Raises:
            MigrationError: The device refused: the data are not complete, or more than that, or of a device that it is
                not like; or something else has reset it or changed its state meanwhile, and it is left as it is.
            MigrationPathError: The device is in a state with data, by another save or load or by `set_state`; or in
                ERROR.
            TypeError, ValueError: That is no binary file to read from.
            UnsupportedError, IoctlError, ClosedError, ForkedError: As for `flags`.
        """
        _check(file, "read", progress)
        copied = 0
        copy = MigrationCopy(self, resumes=True)
        with copy, copy, copy:  # as in `save`
            copy.begin()
            while chunk := _read(file):
                copied += copy.write(chunk)
                if progress is not None:
                    progress(MigrationProgress(_S.RESUMING, copied, None))
            copy.end()
        return copied

    async def load_async(
        self,
        file: SupportsRead | asyncio.StreamReader,
        *,
        progress: Callable[[MigrationProgress], object] | None = None,
    ) -> int:
        """As `load`, in an asyncio event loop.

        Args:
            file: As for `load`, then read in another thread, where a read that waits outlasts a cancelled load; or an
                asyncio.StreamReader.
            progress: As for `load`; called in the event loop.

        Returns:
            As `load`.

        Raises:
            asyncio.CancelledError: Cancelled; the device is reset as after a failure.
            MigrationError, MigrationPathError, TypeError, ValueError, UnsupportedError, IoctlError, ClosedError,
                ForkedError: As for `load`.
        """
        _check(file, "read", progress)
        copy, copied = MigrationCopy(self, resumes=True), 0
        try:
            await _in_thread(copy.begin)
            while chunk := await _read_async(file):
                copied += await _in_thread(copy.write, chunk)
                if progress is not None:
                    progress(MigrationProgress(_S.RESUMING, copied, None))
            await _in_thread(copy.end)
        except BaseException as error:
            await _in_thread(copy.give_up, error)
            raise
        return copied

    # Internal

    @property
    def _lock(self) -> threading.RLock:
        return self._device._iommufd._lock

    def _get(self, feature: DeviceFeature, size: int) -> bytes:
        return Feature(self._device, feature).get(size)

    def _settle(self, state: MigrationState) -> None:
        """Close the streams of sessions that are over: all but the last one, or that too."""
        is_open = [stream for stream in self._streams if not stream.closed]
        current = is_open[-1:] if state in WITH_DATA else []
        for stream in self._streams:
            if stream not in current:
                stream.close()
        self._streams = current

    def _close(self) -> None:
        """The device is closed."""
        self._settle(_S.RUNNING)

    def _was_reset(self) -> None:
        """Close what a reset has ended. Another thread may have begun something since."""
        if self._streams:
            with contextlib.suppress(IOMMUFDError):
                _ = self.state

    def __repr__(self) -> str:
        return f"<Migration of {self._device.name}>"


def _check(file: object, method: str, progress: object) -> None:
    if not callable(getattr(file, method, None)):
        raise TypeError(f"{file!r} has no {method}(): open the file first")
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{file!r} is a text file: open it in binary mode")
    if isinstance(file, io.IOBase) and not (file.readable() if method == "read" else file.writable()):
        raise ValueError(f"{file!r} is not open to {method}")
    if progress is not None:
        check_progress(progress)


def _write(file: SupportsWrite, data: bytes) -> None:
    """Write all of it, also to a file that takes less at a time."""
    while data:
        done = file.write(data)
        if done is None:
            if isinstance(file, io.RawIOBase):
                raise _would_block(file)
            return
        if isinstance(done, bool) or not isinstance(done, int) or not 0 < done <= len(data):
            raise ValueError(f"write() of {file!r} returned {done!r} for {len(data)} bytes")
        data = data[done:]


def _flush(file: object) -> None:
    if callable(flush := getattr(file, "flush", None)):
        flush()


def _read(file: SupportsRead) -> bytes:
    data: object = file.read(CHUNK)
    if data is None:
        raise _would_block(file)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"read() of {file!r} returned {type(data).__name__}, not bytes")
    return bytes(data)


async def _write_async(file: SupportsWrite | asyncio.StreamWriter, data: bytes) -> None:
    import asyncio

    if isinstance(file, asyncio.StreamWriter):
        file.write(data)
        await file.drain()
    else:
        await asyncio.to_thread(_write, file, data)


async def _flush_async(file: SupportsWrite | asyncio.StreamWriter) -> None:
    import asyncio

    if isinstance(file, asyncio.StreamWriter):
        await file.drain()
    else:
        await asyncio.to_thread(_flush, file)


async def _read_async(file: SupportsRead | asyncio.StreamReader) -> bytes:
    import asyncio

    if isinstance(file, asyncio.StreamReader):
        return await file.read(CHUNK)
    return await asyncio.to_thread(_read, file)


def _would_block(file: object) -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, f"{file!r} is set not to block: copy to or from one that waits")


async def _in_thread(call: Callable[..., _T], *arguments: Any) -> _T:
    """Run a call in another thread. When this is cancelled it waits for the call to end: it changes the device."""
    import asyncio

    task = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it has been looked at: asyncio need not report it
        raise
