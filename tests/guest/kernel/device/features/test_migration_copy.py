"""A device's state, saved and loaded: the kernel's sample mtty, whose FIFOs and registers are seen in the other one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    ClosedError,
    Device,
    MigrationError,
    MigrationPathError,
    MigrationProgress,
)
from tests.guest.kernel.device.features.mtty import HEADER, SIZE, WITH_DATA, Broken, S, bring, fill, held, saved
from tests.guest.threads import run_all
from tests.opcodes import opcodes
from tests.patience import patience, until
from tests.sweeps import sample

FILES = ("pyiommufd/kernel/device/features/", "pyiommufd/kernel/handle.py", "pyiommufd/uapi/")


def links(pid: int) -> bytes:
    """What the fds of a process are of."""
    with contextlib.suppress(FileNotFoundError):  # one that was closed meanwhile
        return b" ".join(bytes(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return b""


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
