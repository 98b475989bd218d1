"""Mapped registers: one access of the width named, and no SIGBUS that gets through."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import itertools
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    Claim,
    ClosedError,
    Device,
    ForkedError,
    HostDevice,
    IoctlError,
    RegionFaultError,
    UnsupportedError,
)
from pyiommufd.host.holders import holders
from pyiommufd.kernel import window as window_module
from pyiommufd.kernel.device import region as region_module
from pyiommufd.kernel.device import region_bytes as region_bytes_module
from pyiommufd.uapi import device_ioctls
from tests.patience import patience, until
from tests.sweeps import sample

IDENTIFICATION, LIVENESS, SOURCE = 0x00, 0x04, 0x80
MAP_MODULES = (region_module, region_bytes_module, window_module)


def test_registers_answer_by_4_bytes(device: Device) -> None:
    with device.region(0).map() as window:
        assert (window.offset, window.length) == (0, 1 << 20)
        assert window.read32(IDENTIFICATION) & 0xFF == 0xED
        window.write32(LIVENESS, 0x12345678)
        assert window.read32(LIVENESS) == 0xFFFF_FFFF ^ 0x12345678


def test_registers_answer_by_8_bytes(device: Device) -> None:
    with device.region(0).map() as window:
        window.write64(SOURCE, 0x1234_5678_9ABC_DEF0)
        assert window.read64(SOURCE) == 0x1234_5678_9ABC_DEF0
        # Half of it is another register to the device: two accesses of 4 bytes do not make one of 8.
        window.write32(SOURCE, 0x1111_1111)
        assert window.read64(SOURCE) == 0x1111_1111


def test_all_ones_are_a_value(device: Device) -> None:
    with device.region(0).map() as window:
        window.write64(SOURCE, 0xFFFF_FFFF_FFFF_FFFF)
        assert window.read64(SOURCE) == 0xFFFF_FFFF_FFFF_FFFF


def test_width_is_exact(device: Device) -> None:
    """The device answers to 4 and 8 bytes only: a narrow access made a wider one would reach its registers."""
    with device.region(0).map() as window:
        window.write32(LIVENESS, 0xFFFF_FFFF)
        assert window.read32(LIVENESS) == 0
        assert window.read8(IDENTIFICATION) in (0, 0xFF)
        assert window.read16(IDENTIFICATION) in (0, 0xFFFF)
        window.write8(LIVENESS, 0)
        window.write16(LIVENESS, 0)
        assert window.read32(LIVENESS) == 0


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_bounds_and_alignment(device: Device, width: int) -> None:
    with device.region(0).map(4096, 4096) as window:
        read: Callable[[int], int] = getattr(window, f"read{width}")
        write: Callable[[int, int], None] = getattr(window, f"write{width}")
        step = width // 8
        for outside in (-1, -step, 4096, 4096 - step + 1, 1 << 63, 1 << 64, 1 << 70):
            with pytest.raises(ValueError, match="not within"):
                read(outside)
            with pytest.raises(ValueError, match="not within"):
                write(outside, 0)
        if step > 1:
            with pytest.raises(ValueError, match="multiple"):
                read(1)
            with pytest.raises(ValueError, match="multiple"):
                write(1, 0)
        for value in (-1, 1 << width):
            with pytest.raises(ValueError, match="fit"):
                write(0, value)
        for wrong in ("0", 1.5, None):
            with pytest.raises(TypeError):
                read(wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                write(0, wrong)  # type: ignore[arg-type]
        read(4096 - step)


def test_part_of_a_region(device: Device) -> None:
    region = device.region(0)
    with region.map(0, 4096) as low, region.map(4096) as high:
        assert low.read32(IDENTIFICATION) & 0xFF == 0xED
        assert (high.offset, high.length) == (4096, (1 << 20) - 4096)
        assert high.read32(0) != low.read32(IDENTIFICATION)
    with pytest.raises(ValueError, match="page boundary"):
        region.map(4)
    with pytest.raises(ValueError, match="at least one byte"):
        region.map(0, 0)


def test_config_space_cannot_be_mapped(device: Device) -> None:
    with pytest.raises(UnsupportedError, match=r"use read\(\) and write\(\)") as caught:
        device.region(7).map()
    assert caught.value.errno == errno.EOPNOTSUPP


def test_memory_decode_off_is_an_exception_and_the_device_works_again_after(device: Device) -> None:
    with device.region(0).map() as window:
        device.memory_decode = False
        for _ in range(3):
            with pytest.raises(RegionFaultError, match="memory decode is off; set memory_decode to True") as caught:
                window.read32(IDENTIFICATION)
            assert caught.value.errno == errno.EIO
            with pytest.raises(RegionFaultError):
                window.write64(SOURCE, 1)
        device.memory_decode = True
        assert window.read32(IDENTIFICATION) & 0xFF == 0xED


def test_fault_in_a_thread_is_that_threads(device: Device) -> None:
    found: list[object] = []
    with device.region(0).map() as window:
        device.memory_decode = False

        def access() -> None:
            try:
                window.read32(IDENTIFICATION)
            except BaseException as error:
                found.append(error)

        threads = [threading.Thread(target=access) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        device.memory_decode = True
    assert [type(error) for error in found] == [RegionFaultError] * 4


def test_decode_switched_off_while_another_thread_reads(device: Device) -> None:
    """Looking before an access would be no answer: the switch can come between the two."""
    answers: Counter[object] = Counter()
    over = threading.Event()
    with device.region(0).map() as window:

        def read() -> None:
            while not over.is_set():
                try:
                    answers[window.read32(IDENTIFICATION)] += 1
                except Exception as error:
                    answers[type(error)] += 1

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        switched = 0

        def switch() -> bool:
            nonlocal switched
            device.memory_decode = False
            device.memory_decode = True
            switched += 1
            return switched >= 100 and answers[RegionFaultError] >= 100 and answers[0x0100_00ED] >= 100

        try:
            until(switch, lambda: answers, pause=0)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    # All ones: the access was on its way to the device when the switch came.
    assert set(answers) <= {0x0100_00ED, 0xFFFF_FFFF, RegionFaultError}


HANDLED = """
import faulthandler, mmap, os, sys
from pyiommufd import IOMMUFD, RegionFaultError

def fault(window):
    try:
        window.read32(0)
    except RegionFaultError:
        print("guarded", flush=True)

faulthandler.enable()
with IOMMUFD() as iommufd:
    device = iommufd.bind(sys.argv[1])
    window = device.region(0).map()
    device.memory_decode = False
    fault(window)
    faulthandler.disable()
    fault(window)
    faulthandler.enable()
    fault(window)
    fault(device.region(0).map())
    fd = os.memfd_create("short")
    os.ftruncate(fd, 4096)
    memory = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    memory[0]
"""


def test_faulthandler_gets_the_sigbus_of_somebody_else_and_no_other(claimed: Claim, first: HostDevice) -> None:
    command = [sys.executable, "-c", HANDLED, first.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)
    assert done.stdout == "guarded\n" * 4, done.stderr
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == 1


def test_faulthandler_does_not_take_the_guard_away(device: Device) -> None:
    """All orders are in tests/unit/uapi/test_window.py."""
    was_enabled = faulthandler.is_enabled()
    with device.region(0).map() as window:
        device.memory_decode = False
        for change in (faulthandler.enable, faulthandler.disable, faulthandler.enable, faulthandler.disable):
            change()
            with pytest.raises(RegionFaultError):
                window.read32(IDENTIFICATION)
        device.memory_decode = True
        assert window.read32(IDENTIFICATION) & 0xFF == 0xED
    if was_enabled:
        faulthandler.enable()


def test_handler_of_python_still_gets_a_signal_that_was_sent(device: Device) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGBUS, lambda number, _: got.append(number))
    try:
        with device.region(0).map():
            signal.raise_signal(signal.SIGBUS)
        assert got == [signal.SIGBUS]
    finally:
        signal.signal(signal.SIGBUS, before)


def test_use_after_close(device: Device) -> None:
    window = device.region(0).map()
    window.close()
    assert window.closed
    window.close()
    for use in (lambda: window.read8(0), lambda: window.write8(0, 0)):
        with pytest.raises(ClosedError):
            use()
    assert "closed" in repr(window)


def test_open_window_keeps_the_device_bound_and_close_frees_it(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice
) -> None:
    device = iommufd.bind(first)
    window = device.region(0).map()
    assert any("vfio" in holder.node for holder in holders(first.refreshed()))
    device.close()
    assert window.closed
    assert holders(first.refreshed()) == ()


@contextlib.contextmanager
def at_opcode(number: int | None, modules: Iterable[ModuleType], action: Callable[[], object]) -> Iterator[list[int]]:
    """Do something once, as a signal handler could, before an opcode of the code of some modules.

    Args:
        number: Which of the opcodes that are run, from 0 on; None: none, they are only counted.
        modules: Whose.
        action: What to do.

    Yields:
        The lines of the opcodes that have been run, up to that one.
    """
    files = {module.__file__ for module in modules}
    lines: list[int] = []

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            lines.append(frame.f_lineno)
            if len(lines) - 1 == number:
                sys.settrace(None)
                frame.f_trace_opcodes = False
                action()
                return None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def is_mapped() -> bool:
    """Whether this process has mapped a part of a device."""
    return "/dev/vfio" in Path("/proc/self/maps").read_text()


def test_close_interrupted_by_what_closes_the_iommufd(claimed: Claim, first: HostDevice) -> None:
    """At each point of `Window.close` and of what it calls; where two waited for each other this would not end."""
    for number in itertools.count():
        with IOMMUFD() as iommufd:
            window = iommufd.bind(first).region(0).map()
            with at_opcode(number, (window_module, device_ioctls), iommufd.close) as lines:
                window.close()
            assert window.closed
            assert not is_mapped()
        if len(lines) <= number:
            break
    assert number > 10


class Interrupt(BaseException):
    """What a signal handler raises."""


@pytest.fixture
def map_opcodes(device: Device) -> range:
    """The opcodes of `Region.map` and of what it calls, with no trace of this function left."""
    region = device.region(0)
    with at_opcode(None, MAP_MODULES, lambda: None) as lines:
        region.map()
    device.close()
    return range(len(lines))


def test_interrupted_map_leaves_nothing_once_the_device_is_closed(
    iommufd: IOMMUFD, first: HostDevice, map_opcodes: range
) -> None:
    def interrupt() -> None:
        raise Interrupt

    mapped = 0
    for number in sample("kernel.window[map]", map_opcodes, 8):
        device = iommufd.bind(first)
        region = device.region(0)
        with pytest.raises(Interrupt), at_opcode(number, MAP_MODULES, interrupt) as lines:
            region.map()
        mapped += is_mapped()
        device.close()
        assert not is_mapped(), f"after opcode {number}, line {lines[-1]}"
    assert holders(first.refreshed()) == ()
    print(f"{mapped} of {len(map_opcodes)} were mapped")


def test_map_interrupted_by_what_closes_the_device(iommufd: IOMMUFD, first: HostDevice, map_opcodes: range) -> None:
    for number in sample("kernel.window[map, closed]", map_opcodes, 8):
        device = iommufd.bind(first)
        region = device.region(0)
        # IoctlError: EBADF of a request whose fd had been looked up before.
        with contextlib.suppress(ClosedError, IoctlError), at_opcode(number, MAP_MODULES, device.close) as lines:
            region.map()
        assert device.closed
        assert not is_mapped(), f"after opcode {number}, line {lines[-1]}"


def test_many_bytes_by_one_call(device: Device) -> None:
    with device.region(0).map() as window:
        window.write(SOURCE, bytes.fromhex("f0debc9a78563412 1111111111111111"))
        assert window.read64(SOURCE) == 0x1234_5678_9ABC_DEF0
        assert window.read(SOURCE, 16) == bytes.fromhex("f0debc9a78563412 1111111111111111")
        # By 8 bytes, to which the registers before do not answer; 4 at the end are one access of 4.
        assert window.read(IDENTIFICATION, 8) == b"\xff" * 8
        assert window.read(IDENTIFICATION, 4)[0] == 0xED
        device.memory_decode = False
        with pytest.raises(RegionFaultError, match="memory decode is off; set memory_decode to True") as caught:
            window.read(0, 1 << 20)
        assert caught.value.done == 0
        with pytest.raises(RegionFaultError):
            window.write(SOURCE, bytes(16))
        device.memory_decode = True
        assert window.read(SOURCE, 8) == bytes.fromhex("f0debc9a78563412")


def test_forked_child_has_no_part_in_it(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    device = iommufd.bind(first)
    window = device.region(0).map()

    def child() -> tuple[str, bool]:
        try:
            window.read32(0)
        except ForkedError as error:
            refused = type(error).__name__
        with open("/proc/self/maps") as maps:
            return refused, "/dev/vfio" in maps.read()

    assert in_child(child) == ("ForkedError", False)
    assert window.read32(IDENTIFICATION) & 0xFF == 0xED
