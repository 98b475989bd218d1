"""Waiting for queues: by threads, tasks and loops of the caller's own. The queue is one of page requests of a mock."""

from __future__ import annotations

import asyncio
import contextlib
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import ClosedError, FaultQueue, ForkedError, PageRequestGroup
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD
from tests.guest.threads import run_all
from tests.patience import patience, until


@pytest.fixture
def queue(mock: MockIOMMUFD) -> FaultQueue:
    return mock.alloc_fault_queue()


@pytest.fixture
def faulting(mock: MockIOMMUFD, queue: FaultQueue) -> MockDevice:
    """A device whose page requests come in the queue."""
    ioas = mock.alloc_ioas()
    device = mock.mock_device(ioas)
    device.replace(device.alloc_hwpt(ioas, fault_queue=queue))
    return device


def let_go(faulting: MockDevice) -> None:
    """What uses the queue is gone, so that it can be closed."""
    hwpt = faulting.page_table
    faulting.detach()
    assert hwpt is not None
    hwpt.close()


async def wait(queue: FaultQueue) -> PageRequestGroup:
    return await queue


def readable(queue: FaultQueue) -> bool:
    return bool(select.select([queue], [], [], 0)[0])


def test_the_fd_is_readable_as_long_as_there_is_more(faulting: MockDevice, queue: FaultQueue) -> None:
    """A read takes what it returns: else those who wait by the fd would not know of the rest."""
    assert not readable(queue)
    for number in range(3):
        faulting.page_fault(0, group=number)
    for number in range(3):
        assert readable(queue)
        assert queue.read(0).number == number
    assert not readable(queue)
    queue.respond(*queue.unanswered)


def test_await(faulting: MockDevice, queue: FaultQueue) -> None:
    async def main() -> list[int]:
        faulting.page_fault(0, group=1)
        numbers = [(await queue).number]
        waiting = asyncio.create_task(wait(queue))
        await asyncio.sleep(0)
        assert not waiting.done()
        faulting.page_fault(0, group=2)
        numbers.append((await waiting).number)
        return numbers

    assert asyncio.run(main()) == [1, 2]


def test_async_for_ends_with_the_queue(faulting: MockDevice, queue: FaultQueue) -> None:
    async def main() -> list[int]:
        numbers = []
        faulting.page_fault(0, group=1)
        async for group in queue:
            numbers.append(group.number)
            if len(numbers) < 3:
                asyncio.get_running_loop().call_soon(lambda: faulting.page_fault(0, group=len(numbers) + 1))
            else:
                let_go(faulting)
                asyncio.get_running_loop().call_soon(queue.close)
        return numbers

    assert asyncio.run(main()) == [1, 2, 3]
    assert queue.closed


def test_what_comes_is_given_once(faulting: MockDevice, queue: FaultQueue) -> None:
    """To three threads, and three tasks of two loops each, that answer it."""
    count, got = 300, list[int]()

    def serve(group: PageRequestGroup) -> None:
        got.append(group.requests[0].address)
        queue.respond(group)

    def thread() -> None:
        with contextlib.suppress(ClosedError):
            while True:
                serve(queue.read(patience()))

    async def task() -> None:
        async for group in queue:
            serve(group)
            await asyncio.sleep(0)

    async def tasks() -> None:
        await asyncio.gather(task(), task(), task())

    def produce() -> None:
        for number in range(count):
            faulting.page_fault(number << 12)
        until(lambda: len(got) == count, lambda: len(got))
        let_go(faulting)
        queue.close()

    run_all([thread] * 3 + [lambda: asyncio.run(tasks())] * 2 + [produce])
    assert sorted(got) == [number << 12 for number in range(count)]
    assert queue.unanswered == ()


def test_several_tasks_each_get_one(faulting: MockDevice, queue: FaultQueue) -> None:
    async def main() -> list[int]:
        tasks = [asyncio.create_task(wait(queue)) for _ in range(3)]
        await asyncio.sleep(0)
        for number in range(3):
            faulting.page_fault(0, group=number)
        return [group.number for group in await asyncio.gather(*tasks)]

    assert sorted(asyncio.run(main())) == [0, 1, 2]


def test_a_cancelled_task_takes_nothing(faulting: MockDevice, queue: FaultQueue) -> None:
    """Neither before something comes, nor when it has come and the task has not run since."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue, 0.02)
        waiting = asyncio.create_task(wait(queue))
        await asyncio.sleep(0)
        faulting.page_fault(0, group=1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        after = asyncio.create_task(wait(queue))
        assert (await after).number == 1

    asyncio.run(main())
    before = set(Path("/proc/self/fd").iterdir())
    asyncio.run(main())
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_close_by_a_thread_wakes_tasks_and_destroys(mock: MockIOMMUFD, queue: FaultQueue) -> None:
    """While the loop does something else: what the tasks have of the queue does not keep the kernel from it."""

    async def main() -> list[object]:
        tasks = [asyncio.create_task(wait(queue)) for _ in range(3)]
        await asyncio.sleep(0)
        closing = threading.Thread(target=queue.close)
        closing.start()
        closing.join(patience())
        assert queue.closed
        assert mock.objects == ()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert [type(end) for end in asyncio.run(main())] == [ClosedError] * 3


def test_close_by_a_signal_handler_that_interrupts_the_wait(mock: MockIOMMUFD, queue: FaultQueue) -> None:
    before = signal.signal(signal.SIGALRM, lambda number, frame: queue.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(ClosedError):
            queue.read(patience())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert mock.objects == ()


def test_an_exception_of_a_signal_handler_ends_the_wait_alone(faulting: MockDevice, queue: FaultQueue) -> None:
    def handler(number: int, frame: object) -> None:
        faulting.page_fault(0, group=7)
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptedError):
            queue.read(patience())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert queue.read(0).number == 7


def test_a_forked_child_cannot_wait(
    mock: MockIOMMUFD, queue: FaultQueue, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    async def each() -> None:
        async for _ in queue:
            pass

    def child() -> int:
        uses: list[Callable[[], object]] = [
            lambda: queue.read(0),
            queue.fileno,
            lambda: asyncio.run(wait(queue)),
            lambda: asyncio.run(each()),
        ]
        refused = 0
        for use in uses:
            try:
                use()
            except ForkedError:
                refused += 1
        queue.close()
        with contextlib.suppress(ForkedError):
            asyncio.run(each())
            return -1
        return refused

    assert in_child(child) == 4
    with pytest.raises(TimeoutError):
        queue.read(0)
