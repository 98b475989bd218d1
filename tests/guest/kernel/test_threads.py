"""One address space, used by many threads at once."""

from __future__ import annotations

import mmap
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from pyiommufd import IOAS, DMABuffer
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.patience import patience

PAGE = mmap.PAGESIZE
THREADS = 8
ROUNDS = 60
SLICE = 64
"""Pages of the address space that each thread has to itself."""


def run_all(works: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own; the first exception of one is this function's. None may hang."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("explicit", [False, True], ids=["automatic", "explicit"])
def test_maps_beside_attaches_and_replaces(explicit: bool) -> None:
    """Eight threads map and unmap ranges of their own while one attaches, replaces and detaches: nothing is lost."""
    with MockIOMMUFD() as iommufd:
        ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
        device = iommufd.mock_device(other)
        left: dict[int, tuple[DMABuffer, int]] = {}
        finished = threading.Event()
        moves = 0

        def mapper(number: int) -> None:
            buffer = DMABuffer(4 * PAGE)
            start = commands.APERTURE_START + number * SLICE * PAGE
            for turn in range(ROUNDS):
                iova = start + turn % (SLICE // 4) * 4 * PAGE
                mapping = ioas.map(buffer, iova=iova)
                assert ioas._table.overlapping(iova, 4 * PAGE) == [(iova, 4 * PAGE)]
                if turn < ROUNDS - 1:
                    mapping.unmap()
            left[number] = (buffer, iova)
            if len(left) == THREADS:
                finished.set()

        def mover() -> None:
            nonlocal moves
            page_table = device.alloc_hwpt(ioas) if explicit else ioas
            while not finished.is_set():
                device.replace(page_table)
                device.replace(other)
                device.detach()
                device.attach(page_table)
                moves += 4

        def guarded_mover() -> None:
            try:
                mover()
            finally:
                finished.set()

        run_all([*(partial(mapper, number) for number in range(THREADS)), guarded_mover])
        assert moves >= 4
        device.replace(ioas)
        # Each thread has left one mapping: the record, the kernel and the page table say the same.
        assert ioas._table.places() == sorted((iova, 4 * PAGE) for _, iova in left.values())
        for buffer, iova in left.values():
            assert device.reaches(buffer, iova)
        assert ioas.unmap_all() == THREADS * 4 * PAGE


def test_a_long_map_lets_other_threads_run() -> None:
    """While the kernel pins memory, Python goes on: what another thread counts meanwhile."""
    with MockIOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        device: MockDevice = iommufd.mock_device(ioas)
        assert device.page_table is ioas
        counted, begun, done = 0, threading.Event(), threading.Event()

        def count() -> None:
            nonlocal counted
            begun.wait()
            while not done.is_set():
                counted += 1
                time.sleep(0)

        counter = threading.Thread(target=count)
        counter.start()
        interval = sys.getswitchinterval()
        try:
            # From here on only what lets go of the interpreter by itself lets the other thread run.
            sys.setswitchinterval(60)
            begun.set()
            during, end = 0, time.monotonic() + patience()
            with DMABuffer(64 << 20) as buffer:
                # As often as it takes on a machine that gives the other thread little time.
                while during <= 10 and time.monotonic() < end:
                    before = counted
                    mapping = ioas.map(buffer, iova=commands.APERTURE_START)
                    during += counted - before
                    mapping.unmap()
        finally:
            done.set()
            counter.join()
            sys.setswitchinterval(interval)
        assert during > 10


def test_disjoint_address_spaces(ioas: IOAS) -> None:
    """Threads with an address space each, of one iommufd, are not in each other's way."""
    spaces = [ioas.iommufd.alloc_ioas() for _ in range(4)]

    def work(space: IOAS) -> None:
        buffer = DMABuffer(PAGE)
        for _ in range(ROUNDS):
            with space.map(buffer, iova=0x100000):
                pass

    run_all([partial(work, space) for space in spaces])
    assert [space.unmap_all() for space in spaces] == [0] * 4
