"""16 MiB of a device's memory by one call, and what comes between."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from pyiommufd import ClosedError, Device, DMABuffer, RegionFaultError, RegionIndex
from tests.guest.devices.factories import Binder
from tests.patience import until

IVSHMEM = 0x1AF4, 0x1110
SIZE = 16 << 20


@pytest.fixture
def device(bind: Binder) -> Device:
    """The second one of the machine, whose BAR 2 is memory of 16 MiB."""
    device = bind(*IVSHMEM, 1)
    assert device.regions[RegionIndex.BAR2].size == SIZE
    return device


@pytest.fixture
def decode_on_again(device: Device) -> Iterator[None]:
    yield
    device.memory_decode = True


def test_16_mib_by_one_call(device: Device) -> None:
    region = device.region(RegionIndex.BAR2)
    data = random.Random(16).randbytes(SIZE)  # noqa: S311
    with region.map() as window, region.map() as other, DMABuffer(SIZE) as buffer:
        window.write(0, data)
        assert other.readinto(0, buffer) == SIZE
        assert buffer[:] == data
        assert other.read(3, SIZE - 4) == data[3:-1]
        # By the kernel it is the same memory.
        assert region.read(SIZE // 2, 4096) == data[SIZE // 2 : SIZE // 2 + 4096]


def test_decode_switched_off_in_the_middle(device: Device, decode_on_again: None) -> None:
    """The copy says how far it came; the next one, once decode is on, is whole."""
    with device.region(RegionIndex.BAR2).map() as window:
        window.write(0, b"\x11" * SIZE)
        memory = bytearray(SIZE)
        faults: list[int] = []
        untouched: list[bool] = []
        over = threading.Event()

        def copy() -> None:
            while not over.is_set():
                memory[:] = bytes(SIZE)
                try:
                    window.readinto(0, memory)
                except RegionFaultError as error:
                    faults.append(error.done)
                    untouched.append(not any(memory[error.done :]))

        thread = threading.Thread(target=copy)
        thread.start()

        def switch() -> bool:
            device.memory_decode = False
            device.memory_decode = True
            return any(0 < done < SIZE for done in faults)

        try:
            until(switch, lambda: faults)
        finally:
            over.set()
            thread.join()
        assert all(untouched), "beyond the place of the fault"
        assert window.read(0, SIZE) == b"\x11" * SIZE


def test_close_of_the_device_waits_for_a_copy(device: Device) -> None:
    window = device.region(RegionIndex.BAR2).map()
    copied, ended = threading.Event(), threading.Event()

    def copy() -> None:
        try:
            while True:
                window.readinto(0, memory)
                copied.set()
        except ClosedError:
            ended.set()

    memory = bytearray(SIZE)
    thread = threading.Thread(target=copy)
    thread.start()
    copied.wait()
    device.close()
    thread.join()
    assert ended.is_set()
