"""A device's state, saved and loaded: the kernel's sample mtty, whose FIFOs and registers are seen in the other one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyiommufd import (
    IOMMUFD,
    ClosedError,
    Device,
    ForkedError,
    IoctlError,
    MigrationError,
    MigrationFlag,
    MigrationPathError,
    MigrationProgress,
    MigrationState,
    UnsupportedError,
    uapi,
)
from pyiommufd.uapi import device_ioctls, raw
from tests.guest.threads import run_all
from tests.opcodes import opcodes
from tests.patience import patience, until
from tests.sweeps import sample

S: TypeAlias = MigrationState
FILES = ("pyiommufd/kernel/device/features/", "pyiommufd/kernel/handle.py", "pyiommufd/uapi/")
# Registers: the FIFO, which gives back what was written to it; what empties it; one without effect.
DATA, CONTROL, SCRATCH = 0, 2, 7
HEADER, SIZE = 24, 96  # bytes of an mtty's data: what comes first, and all
WITH_DATA = (S.PRE_COPY, S.PRE_COPY_P2P, S.STOP_COPY, S.RESUMING)


def fill(device: Device, text: bytes) -> None:
    """Have both ports hold it, and one more byte in a register."""
    for port in (0, 1):
        device.region(port).write(CONTROL, b"\x07")
        device.region(port).write(SCRATCH, text[:1])
        for byte in text:
            device.region(port).write(DATA, bytes([byte]))


def held(device: Device, length: int) -> list[bytes]:
    """What each port has in its register and gives back from its FIFO."""
    found = []
    for port in (0, 1):
        region = device.region(port)
        found.append(region.read(SCRATCH, 1) + b"".join(region.read(DATA, 1) for _ in range(length)))
    return found


def links(pid: int) -> bytes:
    """What the fds of a process are of."""
    with contextlib.suppress(FileNotFoundError):  # one that was closed meanwhile
        return b" ".join(bytes(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return b""


def saved(device: Device) -> bytes:
    """The device's data; it runs on."""
    file = io.BytesIO()
    device.migration.save(file)
    device.migration.set_state(S.RUNNING)
    return file.getvalue()


class Broken(io.BytesIO):
    """A file that fails when it is read or written."""

    def write(self, data: Any, /) -> int:
        raise OSError("the disk is full")

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError("the connection is gone")


# States


def set_raw(device: Device, state: int) -> int:
    """The kernel's own answer: 0, or the errno. Data fds are closed again."""
    given = struct.pack("=Ii", state, -1)
    command = raw.struct("vfio_device_feature", tail=given)
    command.argsz = len(command) + len(given)
    command.flags = uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | uapi.VFIO_DEVICE_FEATURE_SET
    try:
        raw.ioctl(device.fileno(), uapi.VFIO_DEVICE_FEATURE, command)
    except IoctlError as error:
        return error.errno or 0
    fd = struct.unpack("=Ii", command.memory[-8:])[1]
    if fd >= 0:
        os.close(fd)
    return 0


def bring(device: Device, state: S, data: bytes) -> None:
    """From wherever it is to a state; it can be left."""
    device.reset()
    device.migration.set_state(state)
    if state == S.RESUMING:
        device.migration.stream.write(data)


STARTS = [state for state in S if state != S.ERROR]  # nothing has an mtty fail


@pytest.mark.parametrize("start", STARTS)
def test_every_arc_is_as_the_kernel_has_it(
    start: S, serial: Device, data_files: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    migration, data = serial.migration, saved(serial)
    asked: list[bytes] = []
    real = device_ioctls.feature_files

    def spy(fd: Any, number: int, op: int, data: bytes, *rest: Any, **named: Any) -> bytes:
        if op == uapi.VFIO_DEVICE_FEATURE_SET:
            asked.append(data)
        return real(fd, number, op, data, *rest, **named)

    for end in S:
        bring(serial, start, data)
        refused = set_raw(serial, end)
        assert migration.state == (start if refused else end)
        bring(serial, start, data)
        with monkeypatch.context() as patch:
            patch.setattr(device_ioctls, "feature_files", spy)
            asked.clear()
            if refused:
                with pytest.raises(MigrationPathError, match=f"from {start.name} to {end.name}") as caught:
                    migration.set_state(end)
                assert (caught.value.state, caught.value.wanted) == (start, end)
                assert not asked, "the kernel was not asked"
                assert migration.state == start
            else:
                path = migration.path(end)
                migration.set_state(end)
                assert asked == ([struct.pack("=Ii", end, -1)] if path else [])
                assert migration.state == end
                assert len(data_files()) == (end in WITH_DATA)
    serial.reset()


def test_each_step_of_a_path_is_one_of_the_kernels(serial: Device) -> None:
    migration, data = serial.migration, saved(serial)
    for start, end in itertools.permutations(STARTS, 2):
        bring(serial, start, data)
        with contextlib.suppress(MigrationPathError):
            for state in migration.path(end):
                assert migration.path(state) == (state,)
                migration.set_state(state)
            assert migration.state == end
    serial.reset()


def test_refusal_names_a_way(serial: Device) -> None:
    serial.migration.set_state(S.STOP_COPY)
    with pytest.raises(MigrationPathError) as caught:
        serial.migration.set_state(S.PRE_COPY)
    assert "supports STOP_COPY, P2P, PRE_COPY" in str(caught.value)
    assert str(caught.value).endswith("STOP -> RUNNING_P2P -> RUNNING -> PRE_COPY")
    with pytest.raises(TypeError, match="MigrationState"):
        serial.migration.set_state(2)  # type: ignore[arg-type]


def test_devices_without_migration_are_refused_by_name(device: Device) -> None:
    for ask in (
        lambda: device.migration.flags,
        lambda: device.migration.state,
        lambda: device.migration.data_size,
        lambda: device.migration.set_state(S.STOP),
        lambda: device.migration.save(io.BytesIO()),
        lambda: device.migration.load(io.BytesIO()),
    ):
        with pytest.raises(UnsupportedError, match=f"{device.name} does not have MIG"):
            ask()


def test_what_a_device_can_do(serial: Device) -> None:
    assert serial.migration.flags == MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY
    assert serial.migration.state == S.RUNNING
    assert serial.migration.data_size == SIZE


# Data


@pytest.mark.parametrize("precopy", [False, True])
def test_state_moves_to_another_device(serial: Device, other_serial: Device, *, precopy: bool) -> None:
    fill(serial, b"hello")
    told: list[MigrationProgress] = []
    file = io.BytesIO()
    assert serial.migration.save(file, precopy=precopy, progress=told.append) == SIZE
    assert serial.migration.state == S.STOP
    assert [(one.state, one.copied) for one in told] == [(S.PRE_COPY, HEADER)] * precopy + [(S.STOP_COPY, SIZE)]
    assert [one.left for one in told] == [0] * len(told)
    file.seek(0)
    assert other_serial.migration.load(file, progress=told.append) == SIZE
    assert (told[-1].state, told[-1].copied) == (S.RESUMING, SIZE)
    assert other_serial.migration.state == S.STOP
    other_serial.migration.set_state(S.RUNNING)
    assert saved(other_serial) == file.getvalue()
    assert held(other_serial, 5) == [b"hhello", b"hhello"]


def test_between_two_processes(serial: Device, serial_names: tuple[str, str]) -> None:
    """By the example, which binds the other device, and this process."""
    fill(serial, b"pipe")
    command = [sys.executable, "examples/migrate.py", serial_names[1], "load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False) as loads:
        assert loads.stdin is not None
        serial.migration.save(loads.stdin, precopy=True)
        _, said = loads.communicate(timeout=patience(60))
    assert (loads.returncode, said.decode()) == (0, f"RESUMING: {SIZE} bytes\n")
    other = serial.iommufd.bind(serial_names[1])
    assert other.migration.state == S.RUNNING
    assert held(other, 4) == [b"ppipe", b"ppipe"]
    other.close()
    serial.close()
    command[3] = "save"
    done = subprocess.run(command, capture_output=True, check=True)
    assert len(done.stdout) == SIZE
    assert done.stderr.decode() == f"PRE_COPY: {HEADER} bytes\nSTOP_COPY: {SIZE} bytes\n"


def test_example_that_fails_or_is_interrupted(serial: Device) -> None:
    """It says where the device is."""
    name, piece = serial.name, saved(serial)[:50]
    serial.close()
    command = [sys.executable, "examples/migrate.py", name]
    with subprocess.Popen([*command, "load"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as loads:
        assert loads.stdin is not None
        assert loads.stderr is not None
        loads.stdin.write(piece)
        loads.stdin.flush()
        until(lambda: b"mtty_mig" in links(loads.pid), "it is RESUMING")
        loads.send_signal(signal.SIGINT)
        said = loads.stderr.read().decode()
    assert (loads.returncode, said.splitlines()[-2:]) == (130, ["interrupted", f"{name} is RUNNING now"])
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*command, "save"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"{name} is RUNNING now")


@pytest.mark.long
def test_example_with_a_device_that_knows_no_migration(device: Device) -> None:
    name = device.name
    device.close()
    command = [sys.executable, "examples/migrate.py", name, "save"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{name} does not have MIGRATION" in done.stderr


def test_stream_by_hand(serial: Device, data_files: Callable[[], list[str]]) -> None:
    migration = serial.migration
    with pytest.raises(ClosedError, match="RUNNING"):
        _ = migration.stream
    migration.set_state(S.PRE_COPY)
    stream = migration.stream
    info = migration.precopy_info()
    assert (info.initial_bytes, info.dirty_bytes, info.reinit) == (HEADER, 0, False)
    assert len(stream.read(10) + stream.read()) == HEADER
    assert stream.read() == b"", "all that there is for now"
    assert migration.precopy_info().initial_bytes == 0
    migration.set_state(S.STOP_COPY)
    assert migration.stream is stream, "the same stream goes on"
    assert len(stream.read()) == SIZE - HEADER
    assert stream.read(1) == b"", "the end"
    with pytest.raises(IoctlError, match="EINVAL") as caught:
        migration.precopy_info()
    assert "PRE_COPY" in caught.value.causes[0].summary
    with pytest.raises(io.UnsupportedOperation):
        stream.write(b"x")
    assert len(data_files()) == 1
    migration.set_state(S.STOP)
    assert stream.closed
    assert data_files() == []


def test_stream_of_a_device_that_resumes(serial: Device) -> None:
    migration, data = serial.migration, saved(serial)
    migration.set_state(S.RESUMING)
    stream = migration.stream
    with pytest.raises(io.UnsupportedOperation):
        stream.read()
    with pytest.raises(io.UnsupportedOperation):
        migration.precopy_info()
    for at in range(0, SIZE, 7):
        stream.write(data[at : at + 7])
    migration.set_state(S.RUNNING)
    assert saved(serial) == data
    migration.set_state(S.RESUMING)
    migration.stream.close()
    with pytest.raises(ClosedError, match="is closed, or with another process or object"):
        _ = migration.stream
    serial.reset()


def test_reset_ends_a_stream(serial: Device, data_files: Callable[[], list[str]]) -> None:
    serial.migration.set_state(S.STOP_COPY)
    stream = serial.migration.stream
    serial.reset()
    assert stream.closed
    assert data_files() == []
    assert serial.migration.state == S.RUNNING
    with pytest.raises(ClosedError):
        stream.read()


def test_closing_the_device_ends_a_stream(serial: Device, data_files: Callable[[], list[str]]) -> None:
    serial.migration.set_state(S.PRE_COPY)
    stream = serial.migration.stream
    serial.close()
    assert stream.closed
    assert data_files() == []
    with pytest.raises(ClosedError):
        _ = serial.migration.state


def test_forked_child(serial: Device, in_child: Callable[[Callable[[], Any]], Any]) -> None:
    serial.migration.set_state(S.STOP_COPY)
    stream = serial.migration.stream

    def use() -> list[str]:
        errors = []
        for call in (lambda: serial.migration.state, stream.read):
            try:
                call()
            except ForkedError as error:
                errors.append(type(error).__name__)
        serial.close()
        return [*errors, str(stream.closed)]

    assert in_child(use) == ["ForkedError", "ForkedError", "True"]
    assert len(stream.read()) == SIZE


# One copy at a time, of its own session


@pytest.mark.parametrize("state", WITH_DATA)
def test_copy_does_not_begin_in_the_middle_of_a_session(state: S, serial: Device) -> None:
    data = saved(serial)
    bring(serial, state, data)
    stream = serial.migration.stream
    way = r"reset\(\)" if state == S.RESUMING else r"set_state\(MigrationState\."
    copies: list[Callable[[], object]] = [
        lambda: serial.migration.save(io.BytesIO()),
        lambda: serial.migration.save(io.BytesIO(), precopy=True),
        lambda: serial.migration.load(io.BytesIO(data)),
        lambda: asyncio.run(serial.migration.save_async(io.BytesIO())),
        lambda: asyncio.run(serial.migration.load_async(io.BytesIO(data))),
    ]
    for copy in copies:
        with pytest.raises(MigrationPathError, match=f"is {state.name}: a save or load of it is under way.*{way}"):
            copy()
        assert (serial.migration.state, serial.migration.stream) == (state, stream)
    if state == S.STOP_COPY:
        assert stream.read() == data
    serial.reset()


def test_second_copy_while_one_is_under_way(serial: Device) -> None:
    data, file, refused = saved(serial), io.BytesIO(), []

    def again(progress: MigrationProgress) -> None:
        for copy in (serial.migration.save, serial.migration.load):
            with pytest.raises(MigrationPathError, match="under way") as caught:
                copy(io.BytesIO(data))
            refused.append(caught.value.state)

    assert serial.migration.save(file, precopy=True, progress=again) == SIZE
    assert file.getvalue() == data
    file.seek(0)
    assert serial.migration.load(file, progress=again) == SIZE
    assert refused == [S.PRE_COPY] * 2 + [S.STOP_COPY] * 2 + [S.RESUMING] * 2


def test_threads_that_save_at_once(serial: Device) -> None:
    """Each of them gets all the data or a refusal."""
    data, files, refused = saved(serial), [io.BytesIO() for _ in range(4)], []

    def save(file: io.BytesIO) -> None:
        try:
            serial.migration.save(file)
        except MigrationPathError:
            refused.append(file)

    for _ in range(10):
        serial.migration.set_state(S.RUNNING)
        for file in files:
            file.seek(0)
            file.truncate()
        refused.clear()
        run_all([functools.partial(save, file) for file in files])
        assert len(refused) < len(files)
        assert {file.getvalue() for file in files if file not in refused} == {data}
        assert not any(file.getvalue() for file in refused)
        assert serial.migration.state == S.STOP


def begin_anew(device: Device) -> None:
    device.reset()
    device.migration.set_state(S.STOP_COPY)


ENDS: dict[str, Callable[[Device], object]] = {
    "reset": lambda device: device.reset(),
    "moved": lambda device: device.migration.set_state(S.STOP),
    "begun anew": begin_anew,
    "ended by another object": lambda device: with_other_object(device, lambda other: other.reset()),
}


def with_other_object(device: Device, call: Callable[[Device], object]) -> object:
    with IOMMUFD.from_fd(os.dup(device.iommufd.fileno())) as iommufd:
        return call(Device.from_fd(os.dup(device.fileno()), iommufd))


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("what", ["save", "save with pre-copy", "load", "save_async", "load_async"])
def test_session_that_something_else_ends(what: str, how: str, serial: Device) -> None:
    """The copy fails, and the device is left where that has moved it."""
    data = saved(serial)
    states: list[S] = []

    def end(progress: MigrationProgress) -> None:
        if not states:
            ENDS[how](serial)
            states.append(serial.migration.state)

    copies: dict[str, Callable[[], object]] = {
        "save": lambda: serial.migration.save(io.BytesIO(), progress=end),
        "save with pre-copy": lambda: serial.migration.save(io.BytesIO(), precopy=True, progress=end),
        "load": lambda: serial.migration.load(io.BytesIO(data), progress=end),
        "save_async": lambda: asyncio.run(serial.migration.save_async(io.BytesIO(), progress=end)),
        "load_async": lambda: asyncio.run(serial.migration.load_async(io.BytesIO(data), progress=end)),
    }
    with pytest.raises(MigrationError, match="something else ended this session") as caught:
        copies[what]()
    assert caught.value.state == serial.migration.state == states[0]
    serial.reset()


def test_session_of_another_object(serial: Device) -> None:
    serial.migration.set_state(S.PRE_COPY)
    stream = serial.migration.stream

    def use(other: Device) -> None:
        with pytest.raises(ClosedError, match="PRE_COPY: its stream is closed, or with another process or object"):
            _ = other.migration.stream
        for copy in (other.migration.save, other.migration.load):
            with pytest.raises(MigrationPathError, match="is PRE_COPY"):
                copy(io.BytesIO())

    with_other_object(serial, use)
    assert serial.migration.state == S.PRE_COPY
    assert len(stream.read()) == HEADER


# Failures


@pytest.mark.parametrize(
    ("spoil", "request_name"),
    [
        (lambda data: data[:50], "VFIO_DEVICE_FEATURE"),
        (lambda data: b"", "VFIO_DEVICE_FEATURE"),
        (lambda data: b"x" * len(data), "write"),
        (lambda data: data + b"x", "write"),
    ],
    ids=["truncated", "empty", "garbage", "too long"],
)
def test_data_that_cannot_be_loaded(
    spoil: Callable[[bytes], bytes],
    request_name: str,
    serial: Device,
    other_serial: Device,
    data_files: Callable[[], list[str]],
) -> None:
    fill(serial, b"kept")
    data = saved(serial)
    with pytest.raises(MigrationError, match="it is RUNNING now") as caught:
        other_serial.migration.load(io.BytesIO(spoil(data)))
    assert caught.value.state == other_serial.migration.state == S.RUNNING
    assert caught.value.request == request_name
    assert "not complete" in caught.value.causes[0].summary
    assert data_files() == []
    other_serial.migration.load(io.BytesIO(data))
    assert held(other_serial, 4) == [b"kkept", b"kkept"]


def test_resuming_is_not_left_without_the_data(serial: Device) -> None:
    serial.migration.set_state(S.RESUMING)
    with pytest.raises(MigrationError, match="RESUMING to RUNNING") as caught:
        serial.migration.set_state(S.RUNNING)
    assert caught.value.state == serial.migration.state == S.RESUMING
    serial.reset()


@pytest.mark.parametrize("start", [S.RUNNING, S.RUNNING_P2P, S.STOP])
def test_file_that_cannot_be_written(start: S, serial: Device, data_files: Callable[[], list[str]]) -> None:
    """The device is where it was before."""
    serial.migration.set_state(start)
    for precopy in (False, True):
        with pytest.raises(OSError, match="disk is full") as caught:
            serial.migration.save(Broken(), precopy=precopy)
        assert caught.value.__notes__ == [f"{serial.name} is {start.name} now"]
        assert serial.migration.state == start
        assert data_files() == []


def test_file_that_cannot_be_read(serial: Device, data_files: Callable[[], list[str]]) -> None:
    with pytest.raises(OSError, match="connection is gone") as caught:
        serial.migration.load(Broken())
    assert caught.value.__notes__ == [f"{serial.name} is RUNNING now"]
    assert serial.migration.state == S.RUNNING
    assert data_files() == []


class Waits:
    """A pipe that nobody serves: a read waits, as does a write to it, until a signal comes."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def read(self, size: int, /) -> bytes:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return os.read(self.reader, size)

    def write(self, data: bytes, /) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while True:
            os.write(self.writer, data)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def test_signal_while_the_other_side_is_waited_for(serial: Device, data_files: Callable[[], list[str]]) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for copy in (serial.migration.load, serial.migration.save):
            with contextlib.closing(Waits()) as pipe:
                with pytest.raises(KeyboardInterrupt) as caught:
                    copy(pipe)
                assert caught.value.__notes__ == [f"{serial.name} is RUNNING now"]
                assert data_files() == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_progress_that_ends_a_copy(serial: Device) -> None:
    def stop(progress: MigrationProgress) -> None:
        raise KeyboardInterrupt

    data = saved(serial)
    with pytest.raises(KeyboardInterrupt):
        serial.migration.save(io.BytesIO(), progress=stop)
    assert serial.migration.state == S.RUNNING
    with pytest.raises(KeyboardInterrupt):
        serial.migration.load(io.BytesIO(data), progress=stop)
    assert serial.migration.state == S.RUNNING


def test_wrong_arguments_change_nothing(serial: Device) -> None:
    async def progress(one: MigrationProgress) -> None: ...

    serial.migration.set_state(S.STOP)  # a copy that fails would end it
    calls: list[Callable[[], object]] = [
        lambda: serial.migration.save(io.StringIO()),  # type: ignore[arg-type]
        lambda: serial.migration.load(io.StringIO("text")),  # type: ignore[arg-type]
        lambda: serial.migration.save(io.BytesIO(), progress=progress),
        lambda: asyncio.run(serial.migration.load_async(io.BytesIO(), progress=progress)),
        lambda: serial.migration.save("name"),  # type: ignore[arg-type]
        lambda: serial.migration.load(3),  # type: ignore[arg-type]
        lambda: serial.migration.save(io.BytesIO(), precopy=1),  # type: ignore[arg-type]
        lambda: serial.migration.load(io.BytesIO(), progress=3),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
        assert serial.migration.state == S.STOP
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file, open(writer, "wb") as other:
        with pytest.raises(ValueError, match="not open to write"):
            serial.migration.save(file)
        with pytest.raises(ValueError, match="not open to read"):
            serial.migration.load(other)
    assert serial.migration.state == S.STOP


@pytest.mark.parametrize("taken", [0, -1, SIZE + 1, True, "all"])
def test_file_whose_write_returns_nonsense(taken: object, serial: Device) -> None:
    class File:
        def write(self, data: bytes, /) -> object:
            return taken

    with pytest.raises(ValueError, match=re.escape(f"returned {taken!r} for {SIZE} bytes")):
        serial.migration.save(File())
    assert serial.migration.state == S.RUNNING


@pytest.mark.parametrize("given", ["", "text", 0, False])
def test_file_whose_read_returns_no_bytes(given: Any, serial: Device) -> None:
    class File:
        def read(self, size: int, /) -> Any:
            return given

    with pytest.raises(TypeError, match=f"returned {type(given).__name__}, not bytes"):
        serial.migration.load(File())
    assert serial.migration.state == S.RUNNING


def test_file_that_is_buffered_on_a_full_disk(serial: Device) -> None:
    """It fails while the device can still go back."""
    for save in (serial.migration.save, lambda file: asyncio.run(serial.migration.save_async(file))):
        file = open("/dev/full", "wb")  # noqa: SIM115 - closing it fails too
        with pytest.raises(OSError, match="No space left") as caught:
            save(file)
        assert caught.value.__notes__ == [f"{serial.name} is RUNNING now"]
        assert serial.migration.state == S.RUNNING
        with pytest.raises(OSError, match="No space left"):
            file.close()


class Slow(io.RawIOBase):
    """A file that takes and gives 7 bytes at a time."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.data += data[:7]
        return min(len(data), 7)

    def readinto(self, buffer: Any, /) -> int:
        piece, self.data = self.data[:7], self.data[7:]
        buffer[: len(piece)] = piece
        return len(piece)


def test_files_that_take_and_give_a_little_at_a_time(serial: Device, other_serial: Device) -> None:
    fill(serial, b"slow")
    file = Slow()
    assert serial.migration.save(file) == SIZE == len(file.data)
    assert other_serial.migration.load(file) == SIZE
    assert held(other_serial, 4) == [b"sslow", b"sslow"]


def test_file_that_does_not_block(serial: Device) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0) as file, pytest.raises(BlockingIOError, match="not to block"):
        serial.migration.load(file)
    os.close(writer)
    assert serial.migration.state == S.RUNNING


def test_threads_change_states_one_after_the_other(serial: Device, data_files: Callable[[], list[str]]) -> None:
    def go(*states: S) -> None:
        for state in states * 25:
            with contextlib.suppress(MigrationPathError):
                serial.migration.set_state(state)

    run_all([
        lambda: go(S.STOP_COPY, S.STOP),
        lambda: go(S.PRE_COPY, S.RUNNING),
        lambda: go(S.PRE_COPY_P2P, S.RUNNING_P2P),
    ])  # fmt: skip
    assert len(data_files()) == (serial.migration.state in WITH_DATA)


# asyncio


def test_async_between_two_devices(serial: Device, other_serial: Device) -> None:
    fill(serial, b"async")
    told: list[tuple[S, int]] = []
    loop_thread: set[int] = set()

    def progress(one: MigrationProgress) -> None:
        loop_thread.add(threading.get_ident())
        told.append((one.state, one.copied))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, two = socket.socketpair()
        reader, other_writer = await asyncio.open_connection(sock=one)
        _, writer = await asyncio.open_connection(sock=two)
        load = loop.create_task(other_serial.migration.load_async(reader, progress=progress))
        assert await serial.migration.save_async(writer, precopy=True, progress=progress) == SIZE
        writer.close()
        await writer.wait_closed()
        assert await load == SIZE
        other_writer.close()
        await other_writer.wait_closed()

    asyncio.run(asyncio.wait_for(main(), patience()))
    assert (serial.migration.state, other_serial.migration.state) == (S.STOP, S.STOP)
    assert held(other_serial, 5) == [b"aasync", b"aasync"]
    assert loop_thread == {threading.get_ident()}
    assert {(S.PRE_COPY, HEADER), (S.STOP_COPY, SIZE), (S.RESUMING, SIZE)} <= set(told)


def test_async_with_plain_files(serial: Device, other_serial: Device) -> None:
    fill(serial, b"file")
    file = io.BytesIO()
    assert asyncio.run(serial.migration.save_async(file)) == SIZE
    file.seek(0)
    assert asyncio.run(other_serial.migration.load_async(file)) == SIZE
    assert held(other_serial, 4) == [b"ffile", b"ffile"]


def test_cancelled_save(serial: Device, data_files: Callable[[], list[str]]) -> None:
    """The device runs on, whether it has been stopped or not."""
    for when in (S.PRE_COPY, S.STOP_COPY):

        async def main(when: S = when) -> None:
            def cancel(progress: MigrationProgress) -> None:
                if progress.state == when:
                    task.cancel()

            task = asyncio.create_task(serial.migration.save_async(io.BytesIO(), precopy=True, progress=cancel))
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert serial.migration.state == S.RUNNING
        assert data_files() == []


def test_cancelled_load(serial: Device, data_files: Callable[[], list[str]]) -> None:
    async def main() -> None:
        told = asyncio.Event()
        reader = asyncio.StreamReader()
        reader.feed_data(data[:50])
        task = asyncio.create_task(serial.migration.load_async(reader, progress=lambda one: told.set()))
        await told.wait()
        assert serial.migration.state == S.RESUMING
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    data = saved(serial)
    asyncio.run(asyncio.wait_for(main(), patience()))
    assert serial.migration.state == S.RUNNING
    assert data_files() == []


def test_failed_async_load(serial: Device) -> None:
    with pytest.raises(MigrationError, match="it is RUNNING now"):
        asyncio.run(serial.migration.load_async(io.BytesIO(b"x" * SIZE)))
    with pytest.raises(OSError, match="disk is full"):
        asyncio.run(serial.migration.save_async(Broken()))
    assert serial.migration.state == S.RUNNING


# An exception at any point


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["set_state", "save", "load", "failed save", "failed load"])
def test_exception_before_any_opcode(name: str, serial: Device, data_files: Callable[[], list[str]]) -> None:
    """As a signal handler raises it: no data fd is lost, and a reset or a state leads on."""
    data = saved(serial)

    def set_states() -> None:
        for one in (S.STOP_COPY, S.RESUMING):
            serial.migration.set_state(one)

    def fail(copy: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):
            copy()

    operations: dict[str, Callable[[], object]] = {
        "set_state": set_states,
        "save": lambda: serial.migration.save(io.BytesIO(), precopy=True),
        "load": lambda: serial.migration.load(io.BytesIO(data)),
        "failed save": lambda: fail(functools.partial(serial.migration.save, Broken(), precopy=True)),
        "failed load": lambda: fail(functools.partial(serial.migration.load, Broken())),
    }
    total, _ = opcodes(operations[name], FILES)
    serial.reset()
    for stop in sample(f"kernel.migration[{name}]", range(total), 40):
        _, where = opcodes(operations[name], FILES, stop)
        state = serial.migration.state
        assert len(data_files()) == (state in WITH_DATA), where
        if name != "set_state":
            assert state in (S.RUNNING, S.STOP), where
        serial.reset()
        assert data_files() == [], where
