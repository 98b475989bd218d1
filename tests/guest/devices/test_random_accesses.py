"""Registers read at random offsets and widths everywhere, and written where that is harmless.

Each operation is answered exactly, by as many bytes as were asked for, or refused by a ValueError or an OSError.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from pyiommufd import IOMMUFD, Device, IoctlError, RegionFaultError, list_devices
from pyiommufd.kernel.device.config_space import ConfigSpace
from pyiommufd.kernel.device.region import Region
from pyiommufd.kernel.window import Window
from tests.guest.devices.factories import Binder
from tests.sweeps import amount, seed

EDU, NVME, E1000E, XHCI, IVSHMEM = (
    (0x1234, 0x11E8),
    (0x1B36, 0x0010),
    (0x8086, 0x10D3),
    (0x1033, 0x0194),
    (0x1AF4, 0x1110),
)
LIVENESS, INTERRUPT_LINE, CACHE_LINE = 0x04, 0x3C, 0x0C
Answer = int | bytes | type[Exception]


def answer(operation: Callable[..., int | bytes | None], *arguments: int | bytes) -> Answer:
    try:
        result = operation(*arguments)
    except (ValueError, OSError) as error:
        return type(error)
    return b"" if result is None else result


class Accesses:
    """Random accesses of one device."""

    def __init__(self, device: Device, choose: random.Random) -> None:
        self.device = device
        self.choose = choose
        self.regions: list[Region] = []
        for index in range(9):
            try:
                region = device.region(index)
            except IoctlError:
                continue  # it has no VGA region
            if region.size:
                self.regions.append(region)
        self.windows = [region.map() for region in self.regions if region.mappable]
        self.counts: Counter[str] = Counter()

    def offset(self, size: int) -> int:
        """Most within, some just past either end, some far out."""
        choose = self.choose
        return choose.choice(
            (
                choose.randrange(size),
                choose.randrange(size) & ~7,
                choose.randrange(-9, size + 9),
                choose.getrandbits(70),
            )
        )

    def read(self) -> None:
        region = self.choose.choice(self.regions)
        offset, size = self.offset(region.size), self.choose.choice((0, 1, 2, 3, 4, 5, 8, 12, 16))
        got = answer(region.read, offset, size)
        if isinstance(got, bytes):
            assert len(got) == size
            assert 0 <= offset <= region.size - size
            self.counts["read"] += 1
        else:
            # A region can be there and not readable, such as ports while their decode is off.
            assert got is ValueError or got is IoctlError, got
            assert got is IoctlError or not 0 <= offset <= region.size - size
            self.counts["read refused"] += 1

    def read_window(self) -> None:
        window = self.choose.choice(self.windows)
        width = self.choose.choice((1, 2, 4, 8))
        offset = self.offset(window.length)
        got = answer(getattr(window, f"read{8 * width}"), offset)
        inside = 0 <= offset <= window.length - width and not offset % width
        if isinstance(got, int):
            assert inside
            assert 0 <= got < 1 << (8 * width)
            self.counts["window read"] += 1
        else:
            assert got is ValueError
            assert not inside
            self.counts["window read refused"] += 1


@pytest.fixture
def choose() -> random.Random:
    return random.Random(seed("devices.random_accesses"))  # noqa: S311 - to be repeatable


@pytest.fixture
def accesses(bind: Binder, choose: random.Random) -> dict[tuple[int, int], Accesses]:
    return {ids: Accesses(bind(*ids), choose) for ids in (EDU, NVME, E1000E, XHCI, IVSHMEM)}


def write_config(config: ConfigSpace, choose: random.Random) -> None:
    offset, value = choose.choice((INTERRUPT_LINE, CACHE_LINE)), choose.choice((choose.randrange(256), 256, -1))
    got = answer(config.write8, offset, value)
    if 0 <= value < 256:
        assert got == b""
        assert offset != INTERRUPT_LINE or config.read8(offset) == value
    else:
        assert got is ValueError


def write_liveness(window: Window, choose: random.Random) -> None:
    value = choose.choice((choose.getrandbits(32), 1 << 32, -1))
    got = answer(window.write32, LIVENESS, value)
    if 0 <= value < 1 << 32:
        assert got == b""
        assert window.read32(LIVENESS) == value ^ 0xFFFF_FFFF
    else:
        assert got is ValueError


class Memory:
    """The memory of the ivshmem device, beside what it must hold."""

    def __init__(self, window: Window, region: Region, choose: random.Random) -> None:
        self.window, self.region, self.choose = window, region, choose
        self.wanted = bytearray(region.read(0, region.size))

    def write(self) -> None:
        choose = self.choose
        if choose.random() < 0.5:
            width = choose.choice((1, 2, 4, 8))
            offset = choose.randrange(-8, self.region.size + 8)
            value = choose.getrandbits(8 * width + choose.randrange(2))
            fits = 0 <= offset <= self.region.size - width and not offset % width and not value >> (8 * width)
            got = answer(getattr(self.window, f"write{8 * width}"), offset, value)
            data = value.to_bytes(width + 1, "little")[:width]
        else:
            data = choose.randbytes(choose.randrange(1, 24))
            offset = choose.randrange(-8, self.region.size + 8)
            fits = 0 <= offset <= self.region.size - len(data)
            got = answer(self.region.write, offset, data)
        assert got == b"" if fits else got is ValueError
        if fits:
            self.wanted[offset : offset + len(data)] = data
            assert self.region.read(offset, len(data)) == data


def test_random_accesses(accesses: dict[tuple[int, int], Accesses], choose: random.Random) -> None:
    ivshmem = accesses[IVSHMEM]
    memory = next(region for region in ivshmem.regions if region.index == 2)
    window = next(window for window in ivshmem.windows if window.length == memory.size)
    written = Memory(window, memory, choose)
    everything = list(accesses.values())
    operations = amount("devices.random_accesses", 100_000, 10_000)
    for turn in range(operations):
        match turn % 8:
            case 0 | 1 | 2:
                choose.choice(everything).read()
            case 3 | 4:
                choose.choice(everything).read_window()
            case 5:
                write_config(choose.choice(everything).device.config, choose)
            case 6:
                write_liveness(accesses[EDU].windows[0], choose)
            case 7:
                written.write()
    assert memory.read(0, memory.size) == bytes(written.wanted)
    counts: Counter[str] = sum((one.counts for one in everything), Counter())
    print(dict(counts))
    assert min(counts.values()) > operations // 100
    assert len(counts) == 4


def test_memory_is_there_for_all_who_map_it(bind: Binder, iommufd: IOMMUFD) -> None:
    device = bind(*IVSHMEM)
    region = device.region(2)
    with region.map() as window, region.map(4096) as rest:
        window.write64(4096, 0x0123_4567_89AB_CDEF)
        assert rest.read64(0) == 0x0123_4567_89AB_CDEF
        assert [rest.read8(place) for place in range(8)] == [0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01]
        device.memory_decode = False
        with pytest.raises(RegionFaultError):
            rest.write8(0, 1)
        device.memory_decode = True
        assert rest.read8(0) == 0xEF


def test_byte_of_a_register_is_a_byte(bind: Binder) -> None:
    """QEMU 7.2 answers by two bytes here, and has the processor load both into its register."""
    with bind(*NVME).region(0).map() as window:
        window.write32(0x28, 0xABCD_E000)  # where the admin submission queue is, while the controller is off
        assert [window.read8(0x28 + place) for place in range(4)] == [0x00, 0xE0, 0xCD, 0xAB]


def test_guest_has_them_all() -> None:
    there = {(device.vendor_id, device.device_id) for device in list_devices("pci")}
    assert {EDU, NVME, E1000E, XHCI, IVSHMEM} <= there
