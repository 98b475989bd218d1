"""One address space, used by many threads at once."""

from __future__ import annotations

import mmap
import operator
import sys
import threading
import time
from functools import partial

import pytest

from pyiommufd import HWPT, IOAS, IOMMUFD, ClosedError, DMABuffer, IOMMUFDError, NotFoundError
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.guest.threads import run_all
from tests.patience import patience, until

PAGE = mmap.PAGESIZE
THREADS = 8
ROUNDS = 60
SLICE = 64
"""Pages of the address space that each thread has to itself."""


@pytest.mark.parametrize("explicit", [False, True], ids=["automatic", "explicit"])
def test_maps_beside_attaches_and_replaces(explicit: bool) -> None:
    """Eight threads map and unmap ranges of their own while one attaches, replaces and detaches: nothing is lost."""
    with MockIOMMUFD() as iommufd:
        ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
        device = iommufd.mock_device(other)
        left: dict[int, tuple[DMABuffer, int]] = {}
        moved, finished = threading.Event(), threading.Event()
        moves = 0

        def mapper(number: int) -> None:
            buffer = DMABuffer(4 * PAGE)
            start = commands.APERTURE_START + number * SLICE * PAGE
            assert moved.wait(patience())
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
                moved.set()

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


def test_what_uses_an_object_can_be_asked_while_it_changes() -> None:
    """Snapshots, of what other threads make, attach and close meanwhile."""
    with MockIOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        device = iommufd.mock_device(ioas)
        finished = threading.Event()

        def churn() -> None:
            try:
                for _ in range(ROUNDS):
                    hwpt = device.alloc_hwpt(ioas)
                    device.replace(hwpt)
                    device.replace(ioas)
                    hwpt.close()
            finally:
                finished.set()

        def ask() -> None:
            while not finished.is_set():
                assert {type(one) for one in ioas.users} <= {HWPT, MockDevice}
                assert {type(one) for one in iommufd.objects} <= {HWPT, MockDevice, IOAS}
                assert len(ioas.hwpts) <= 1
                assert None in device.page_tables
                assert iommufd.devices == (device,)

        run_all([churn, ask, ask])


def test_close_waits_for_a_map_that_is_under_way() -> None:
    """What gets the number of the fd next is another iommufd, and is not mapped into."""
    for _ in range(8):
        iommufd = MockIOMMUFD()
        ioas = iommufd.alloc_ioas()
        iommufd.mock_device(ioas)
        buffer = DMABuffer(32 << 20)
        ended: list[type[Exception]] = []

        def work(ioas: IOAS = ioas, buffer: DMABuffer = buffer, ended: list[type[Exception]] = ended) -> None:
            try:
                while True:
                    ioas.map(buffer, iova=commands.APERTURE_START).unmap()
            except IOMMUFDError as error:
                ended.append(type(error))

        thread = threading.Thread(target=work)
        thread.start()
        until(partial(operator.attrgetter("users"), ioas._c), "a map is under way")
        iommufd.close()
        # The lowest number that is free, which is that of the one before.
        with IOMMUFD() as other:
            mine = other.alloc_ioas()
            thread.join(patience())
            assert mine.mappings == ()
            assert mine.unmap_all() == 0
        assert ended == [ClosedError]
        buffer.close()


def test_a_copy_within_beside_the_close() -> None:
    """Source and target are one: the close does not wait for the copy that waits for it."""
    with MockIOMMUFD() as iommufd:
        for _ in range(ROUNDS):
            ioas = iommufd.alloc_ioas()
            ioas.map(DMABuffer(PAGE), iova=PAGE)
            started = threading.Event()

            def copy(ioas: IOAS = ioas, started: threading.Event = started) -> None:
                started.set()
                try:
                    while True:
                        ioas.copy_from(ioas, PAGE, PAGE).unmap()
                except (ClosedError, NotFoundError):
                    pass

            def close(ioas: IOAS = ioas, started: threading.Event = started) -> None:
                started.wait(patience())
                ioas.close()

            run_all([copy, close])
