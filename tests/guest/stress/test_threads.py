"""Threads that map, attach and close at the same time."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    HostDevice,
)
from pyiommufd.kernel.memory.mapping import DMAMappings
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives
from tests.guest.threads import run_all

PAGE = mmap.PAGESIZE


@pytest.mark.long
def test_eight_threads_map_while_another_attaches_and_replaces(
    device: Device,
    peer_device: Device,
    iommufd: IOMMUFD,
    ioas: IOAS,
    edu: EduDriver,
    arrives: Arrives,
) -> None:
    other = iommufd.alloc_ioas()
    tables = (ioas, other)
    end = time.monotonic() + 4
    turns = [0] * 9

    def work(number: int) -> None:
        buffer = DMABuffer(8 * PAGE)
        base = (16 + number) * 16 * IOVA
        while time.monotonic() < end or turns[number] < 10:
            table = tables[turns[number] % 2]
            here = [table.map(buffer, iova=base + at * 8 * PAGE) for at in range(4)]
            many = table.map_many(buffer, [(at * PAGE, PAGE, base + IOVA + 2 * at * PAGE) for at in range(8)])
            chosen = table.map(buffer, below=1 << 28)
            made: list[DMAMapping | DMAMappings] = [*here, many, chosen]
            for one in made:
                assert one.mapped
                one.unmap()
                assert not one.mapped
            turns[number] += 1
        assert ioas.map(buffer, iova=base).iova == base

    def attach() -> None:
        while time.monotonic() < end or turns[8] < 10:
            device.attach(ioas)
            peer_device.attach(ioas)
            device.replace(other)
            assert peer_device.page_table is other
            peer_device.detach()
            device.replace(ioas)
            device.detach()
            turns[8] += 1

    run_all([*(partial(work, number) for number in range(8)), attach])
    assert min(turns) >= 10, turns
    assert len(ioas.mappings) == 8
    assert other.mappings == ()
    assert other.unmap_all() == 0
    assert ioas.unmap_all() == 8 * 8 * PAGE
    other.close()
    buffer = DMABuffer(PAGE)
    ioas.map(buffer, iova=IOVA)
    device.attach(ioas)
    assert arrives(edu, buffer)


def test_threads_that_close_at_the_same_time(claimed: Claim, first: HostDevice, peer: HostDevice) -> None:
    """Each of eight threads closes everything in an order of its own; once is what happens."""

    def close_all(closes: list[Callable[[], None]], number: int, barrier: threading.Barrier) -> None:
        barrier.wait()
        for at in range(len(closes)):
            closes[(at + number) % len(closes)]()

    for _ in range(8):
        with LeakCheck():
            iommufd = IOMMUFD()
            devices = [iommufd.bind(first), iommufd.bind(peer)]
            ioas = iommufd.alloc_ioas()
            devices[0].attach(ioas)
            buffer = DMABuffer(PAGE)
            mapping = ioas.map(buffer, iova=IOVA)
            window = devices[0].region(0).map()
            closes: list[Callable[[], None]] = [window.close, *(d.close for d in devices), iommufd.close, mapping.unmap]
            barrier = threading.Barrier(8)
            run_all([partial(close_all, closes, number, barrier) for number in range(8)])
            assert iommufd.closed
            buffer.close()
