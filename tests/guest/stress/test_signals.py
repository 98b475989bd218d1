"""Signal handlers that raise, at whatever moment."""

from __future__ import annotations

import contextlib
import mmap
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    Device,
    DeviceFile,
    DMABuffer,
    DMAMapping,
    HostDevice,
)
from pyiommufd.kernel.memory.mapping import DMAMappings
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.mock import MockIOMMUFD
from tests.guest.dma import IOVA
from tests.guest.mock_scene import MockScene
from tests.sweeps import sample

PAGE = mmap.PAGESIZE


class Interrupt(BaseException):
    """Raised by a signal handler, as KeyboardInterrupt is."""


@contextlib.contextmanager
def timer(seconds: float) -> Iterator[None]:
    """Have a signal handler raise once, after that time, unless the block is left before."""
    armed = True

    def handler(number: int, frame: FrameType | None) -> None:
        if armed:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def moments(name: str, once: Callable[[], object], every: int, count: int) -> list[float]:
    """Moments, in seconds: from at once to well after the end of what is to be cut short, on this machine.

    Args:
        name: Of the sweep.
        once: What is to be cut short.
        every: How many moments there are.
        count: How many a sample has.
    """
    took = []
    for _ in range(3):
        start = time.monotonic()
        once()
        took.append(time.monotonic() - start)
    return [1.5 * min(took) * (number + 1) / every for number in sample(name, range(every), count)]


def known(ioas: IOAS) -> int:
    """Bytes that are mapped according to the record."""
    return sum(mapping.length for mapping in ioas.mappings)


@pytest.mark.long
@pytest.mark.parametrize("attached", [False, True])
def test_interrupted_maps_and_unmaps_are_known_or_undone(
    device: Device, ioas: IOAS, uncollected: None, attached: bool
) -> None:
    """Hundreds of loops, cut short at another moment each: what the kernel has mapped is what the record says."""
    if attached:
        device.attach(ioas)
    buffer = DMABuffer(1 << 20)
    view = memoryview(buffer)
    pieces = [(at * PAGE, PAGE, 64 * IOVA + 2 * at * PAGE) for at in range(256)]

    def work(made: list[DMAMapping | DMAMappings]) -> None:
        for at in range(16):
            made.append(ioas.map(view[at * PAGE : (at + 8) * PAGE], iova=IOVA + 16 * at * PAGE))
            made.append(ioas.map(view[: 8 * PAGE]))
            if at == 8:
                made.append(ioas.map_many(buffer, pieces))
            if at % 4 == 0:
                made.append(ioas.copy_from(ioas, 32 * IOVA, PAGE))
            made.append(ioas.map(view[:PAGE], below=1 << 27))
            if at % 3 == 2:
                made.pop(0).unmap()

    def whole() -> None:
        ioas.map(DMABuffer(4 * PAGE), iova=32 * IOVA)
        work([])
        ioas.unmap_all()

    interrupted = 0
    chosen = moments(f"stress.signals[maps, {attached}]", whole, 300, 40)
    for seconds in chosen:
        made: list[DMAMapping | DMAMappings] = []
        ioas.map(DMABuffer(4 * PAGE), iova=32 * IOVA)
        try:
            with timer(seconds):
                work(made)
        except Interrupt:
            interrupted += 1
        assert set(made) <= set(ioas.mappings) | {one for one in made if not one.mapped}
        assert all(one.iova >= 0 for one in ioas._table if isinstance(one, DMAMapping)), "an address that is not known"
        expected = known(ioas)
        # In the kernel: as many bytes, no more and no fewer.
        assert ioas.unmap_all() == expected, f"after {seconds} s"
        assert len(ioas._table) == 0
        # At the place of the last one that was fixed there is room, or EEXIST would say so.
        ioas.map(view[: 8 * PAGE], iova=IOVA).unmap()
    assert interrupted > len(chosen) // 6
    view.release()
    buffer.close()


# Of files of sysfs whose reading was cut short.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_rounds_leave_nothing(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, uncollected: None
) -> None:
    """A timer over bind, attach, map, detach and close: whatever was cut short can be closed and done again."""
    buffer = DMABuffer(PAGE)
    check = LeakCheck()

    def work(file: DeviceFile) -> None:
        with iommufd.alloc_ioas() as ioas, iommufd.bind(file) as device:
            device.attach(ioas)
            ioas.map(buffer, iova=IOVA)
            device.region(0).map().read32(0)
            device.detach()

    interrupted = 0
    chosen = moments("stress.signals[rounds]", lambda: work(DeviceFile(first)), 60, 20)
    for seconds in chosen:
        # Opened before: what os.open returns is lost, to any Python program, where a handler raises just then.
        file = DeviceFile(first)
        try:
            with timer(seconds):
                work(file)
        except Interrupt:
            interrupted += 1
        file.close()
        for left in iommufd.objects:
            left.close()
        assert check.leaks() == [], f"after {seconds} s"
        buffer.resize(PAGE)  # which would raise where it were still mapped
    assert interrupted > len(chosen) // 6
    iommufd.bind(first).close()


# Of what was read of sysfs when a handler raised.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["iommufd", "ioas", "viommu", "device"])
def test_interrupted_closes_can_be_repeated(uncollected: None, name: str) -> None:
    """With every kind of object alive: what was cut short is closed by the next call, and nothing is left."""
    check = LeakCheck()

    def prepare() -> MockScene:
        scene = MockScene(MockIOMMUFD())
        if name in ("ioas", "viommu"):
            scene.device.close()
            scene.peer.close()
        return scene

    def close(scene: MockScene) -> None:
        scene.iommufd.close() if name == "iommufd" else scene.attempt(name)

    interrupted = 0
    scene = prepare()
    start = time.monotonic()
    close(scene)
    took = time.monotonic() - start
    scene.iommufd.close()
    for number in sample(f"stress.signals[close {name}]", range(60), 10):
        scene = prepare()
        try:
            with timer(took * (number + 1) / 60):
                close(scene)
        except Interrupt:
            interrupted += 1
        close(scene)
        scene.iommufd.close()
        assert scene.really_open() <= {"buffer"}
        scene.buffer.close()
        assert check.leaks() == [], f"after {number}"
    assert interrupted
