"""Copies of many bytes, and who unmaps: on a file's memory, which faults where it is cut off, as a BAR does."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pyiommufd import AccessDeniedError, ClosedError, DMABuffer, RegionFaultError
from pyiommufd.kernel.window import Window
from tests.opcodes import opcodes
from tests.patience import patience

PAGE = mmap.PAGESIZE
MANY = 16 << 20
ROOT = Path(__file__).resolve().parents[3]


class File:
    """What a region is to a window: here it is a file in memory, of whose size its windows are."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("region")
        os.ftruncate(self.fd, size)
        self.file_offset = 0
        self.size = size
        self._file_owner = SimpleNamespace(_live=lambda: self.fd, in_child=False, pid=0)

    def _why_silent(self) -> str:
        return "the file ends before it"

    def map(self, *, readable: bool = True, writeable: bool = True) -> Window:
        window = Window(cast("Any", self), 0, self.size)
        window._map(readable=readable, writeable=writeable)
        return window

    def content(self) -> bytes:
        return os.pread(self.fd, self.size, 0)


@pytest.fixture
def make() -> Iterator[Callable[[int], File]]:
    files = []

    def make(size: int) -> File:
        files.append(File(size))
        return files[-1]

    yield make
    for file in files:
        os.close(file.fd)


def test_16_mib_by_one_call(make: Callable[[int], File]) -> None:
    file = make(MANY)
    data = random.Random(16).randbytes(MANY)  # noqa: S311
    with file.map() as window:
        window.write(0, data)
        assert file.content() == data
        assert window.read(0, MANY) == data
        with DMABuffer(MANY) as buffer:
            assert window.readinto(0, buffer) == MANY
            assert buffer[:] == data


def test_any_offset_and_length(make: Callable[[int], File]) -> None:
    file = make(3 * PAGE)
    choose = random.Random(1)  # noqa: S311
    wanted = bytearray(3 * PAGE)
    with file.map() as window:
        for _ in range(300):
            offset = choose.randrange(3 * PAGE + 1)
            length = choose.choice((choose.randrange(20), choose.randrange(3 * PAGE))) % (3 * PAGE - offset + 1)
            data = choose.randbytes(length)
            window.write(offset, data)
            wanted[offset : offset + length] = data
            assert file.content() == wanted
            offset = choose.randrange(3 * PAGE - length + 1)
            assert window.read(offset, length) == wanted[offset : offset + length]
        whole = np.zeros((3, PAGE // 8), dtype=np.uint64)
        window.readinto(0, whole.data)
        assert whole.tobytes() == wanted
        window.write(0, whole[::-1].copy().data)
        assert file.content() == whole[::-1].tobytes()


def test_wrong_arguments(make: Callable[[int], File]) -> None:
    with make(PAGE).map() as window:
        for offset, length in ((-1, 1), (0, -1), (0, PAGE + 1), (PAGE, 1), (PAGE + 1, 0), (1 << 70, 1), (0, 1 << 70)):
            with pytest.raises(ValueError, match="not within"):
                window.read(offset, length)
            if length in (0, 1):
                with pytest.raises(ValueError, match="not within"):
                    window.write(offset, bytes(length))
                with pytest.raises(ValueError, match="not within"):
                    window.readinto(offset, bytearray(length))
        wrong: Any
        for wrong in ("text", 1.5, None):
            with pytest.raises(TypeError):
                window.read(wrong, 1)
            with pytest.raises(TypeError):
                window.read(0, wrong)
            with pytest.raises(TypeError):
                window.write(0, wrong)
            with pytest.raises(TypeError):
                window.readinto(0, wrong)
        with pytest.raises(TypeError, match="read-only"):
            window.readinto(0, cast("Any", b"1234"))
        with pytest.raises(TypeError):
            window.readinto(0, memoryview(bytearray(8))[::2])
        # Nobody holds the memory after a refusal.
        memory = bytearray(PAGE + 1)
        with pytest.raises(ValueError, match="not within") as caught:
            window.readinto(0, memory)
        memory.clear()
        del caught


def test_a_fault_in_the_middle_says_how_far_it_came(make: Callable[[int], File]) -> None:
    file = make(4 * PAGE)
    with file.map() as window:
        window.write(0, b"\x11" * (4 * PAGE))
        os.ftruncate(file.fd, 2 * PAGE)
        memory = bytearray(4 * PAGE)
        with pytest.raises(RegionFaultError, match=f"after {2 * PAGE - 3} bytes") as caught:
            window.readinto(3, memoryview(memory)[:-3])
        assert caught.value.errno == errno.EIO
        assert caught.value.done == 2 * PAGE - 3
        assert memory == b"\x11" * (2 * PAGE - 3) + bytes(2 * PAGE + 3)
        with pytest.raises(RegionFaultError) as caught:
            window.write(PAGE, b"\x22" * (2 * PAGE))
        assert caught.value.done == PAGE
        assert os.pread(file.fd, 2 * PAGE, 0) == b"\x11" * PAGE + b"\x22" * PAGE
        with pytest.raises(RegionFaultError) as caught:
            window.read(3 * PAGE, 8)
        assert caught.value.done == 0
        assert window.read(0, 8) == b"\x11" * 8


FAULT_OF_THE_CALLERS = """
import mmap, os
from tests.unit.kernel.test_window import File

short = File(8192)
memory = mmap.mmap(short.fd, 8192)
os.ftruncate(short.fd, 4096)
window = File(8192).map()
print("copies", flush=True)
window.write(0, memory)
"""


def test_a_fault_of_the_callers_memory_is_not_the_devices() -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", FAULT_OF_THE_CALLERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(), check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "copies\n")
    assert "Fatal Python error: Bus error" in done.stderr


def test_what_a_region_does_not_allow_is_refused(make: Callable[[int], File]) -> None:
    file = make(PAGE)
    with file.map(writeable=False) as window:
        assert window.read32(0) == 0
        with pytest.raises(AccessDeniedError):
            window.write32(0, 1)
        with pytest.raises(AccessDeniedError):
            window.write(0, b"1")
    with file.map(readable=False) as window:
        window.write32(0, 1)
        with pytest.raises(AccessDeniedError):
            window.read32(0)
        with pytest.raises(AccessDeniedError):
            window.read(0, 1)


def test_close_waits_for_copies(make: Callable[[int], File]) -> None:
    """A copy into what is unmapped would end the process by SIGSEGV."""
    window = make(MANY).map()
    copying, errors = threading.Barrier(4), []

    def copy(step: Callable[[], object]) -> None:
        step()
        copying.wait()
        try:
            while True:
                step()
        except BaseException as error:
            errors.append(error)

    memory, others = bytearray(MANY), bytearray(MANY)
    steps = (lambda: window.readinto(0, memory), lambda: window.write(0, others), lambda: window.read32(0))
    threads = [threading.Thread(target=copy, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    copying.wait()
    closers = [threading.Thread(target=window.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    window.close()
    assert window.closed
    assert not any("memfd:region" in line for line in Path("/proc/self/maps").read_text().splitlines())
    for thread in [*threads, *closers]:
        thread.join()
    assert [type(error) for error in errors] == [ClosedError] * 3


def test_what_is_closed_before_it_is_mapped_stays_so(make: Callable[[int], File]) -> None:
    file = make(PAGE)
    window = Window(cast("Any", file), 0, PAGE)
    window.close()
    with pytest.raises(ClosedError):
        window._map(readable=True, writeable=True)
    assert window.closed
    with pytest.raises(ClosedError):
        window.read(0, 1)


@pytest.mark.parametrize("access", ["read32", "read64", "write8", "write64", "readinto"])
def test_a_fault_is_told_whatever_a_signal_handler_reads_meanwhile(make: Callable[[int], File], access: str) -> None:
    """What the handler's access says is no answer to the one that it has interrupted."""
    file, other = make(PAGE), make(PAGE)
    window, healthy = file.map(), other.map()
    os.ftruncate(file.fd, 0)

    accesses: dict[str, Callable[[], object]] = {
        "read32": lambda: window.read32(0),
        "read64": lambda: window.read64(0),
        "write8": lambda: window.write8(0, 1),
        "write64": lambda: window.write64(0, 1),
        "readinto": lambda: window.readinto(0, bytearray(24)),
    }

    def act() -> None:
        with pytest.raises(RegionFaultError) as caught:
            accesses[access]()
        assert caught.value.done == 0

    def handler() -> None:
        assert healthy.read64(0) == 0
        with pytest.raises(ValueError, match="not a multiple"):
            healthy.read32(1)

    files = ("pyiommufd/kernel/window.py", "pyiommufd/uapi/")
    every, _ = opcodes(act, files)
    assert every > 5
    for stop in range(every):
        opcodes(act, files, stop, handler, raises=False)
    window.close()
    healthy.close()
