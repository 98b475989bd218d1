"""Waiting for queues: by threads, tasks and loops of the caller's own, the same for each kind of queue."""

from __future__ import annotations

import asyncio
import contextlib
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyiommufd import ClosedError, ForkedError
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.guest.threads import ends_of_waiters, run_all
from tests.mock_data import stage1
from tests.patience import patience, until


class Faults:
    """Page requests of a mock device, numbered from 0 on, and their queue."""

    def __init__(self, mock: MockIOMMUFD) -> None:
        ioas = mock.alloc_ioas()
        self.queue: Any = mock.alloc_fault_queue()
        self.device = mock.mock_device(ioas)
        self.table = self.device.alloc_hwpt(ioas, fault_queue=self.queue)
        self.device.replace(self.table)
        self.count = 0

    def come(self) -> None:
        """Have one come."""
        self.device.page_fault(self.count << 12)
        self.count += 1

    def number(self, record: Any) -> int:
        """Which one it is."""
        self.queue.respond(record)
        return int(record.requests[0].address) >> 12

    def close(self) -> None:
        """Close the queue, once what uses it is gone."""
        if not self.table.closed:
            self.device.detach()
            self.table.close()
        self.queue.close()


class Events:
    """Events of a mock device behind a vIOMMU, numbered from 0 on, and their queue."""

    def __init__(self, mock: MockIOMMUFD) -> None:
        ioas = mock.alloc_ioas()
        self.device: MockDevice = mock.mock_device(ioas)
        viommu = self.device.alloc_viommu(self.device.alloc_hwpt(ioas, nest_parent=True), commands.VIOMMU_TYPE)
        viommu.alloc_vdevice(self.device, 0x99)
        self.device.replace(viommu.alloc_nested(stage1()))
        self.queue: Any = viommu.alloc_event_queue(commands.VEVENTQ_TYPE, 1000)

    def come(self) -> None:
        self.device.virtual_event()

    def number(self, record: Any) -> int:
        return int(record.sequence)

    def close(self) -> None:
        self.queue.close()


Scene: TypeAlias = Faults | Events


@pytest.fixture(params=[Faults, Events])
def scene(request: pytest.FixtureRequest, mock: MockIOMMUFD) -> Scene:
    made: Scene = request.param(mock)
    return made


async def wait(scene: Scene) -> int:
    return scene.number(await scene.queue)


def readable(scene: Scene) -> bool:
    return bool(select.select([scene.queue], [], [], 0)[0])


def test_the_fd_is_readable_as_long_as_there_is_more(scene: Scene) -> None:
    """A read takes what it returns and no more: else those who wait by the fd would not know of the rest."""
    assert not readable(scene)
    for _ in range(3):
        scene.come()
    for number in range(3):
        assert readable(scene)
        assert scene.number(scene.queue.read(0)) == number
    assert not readable(scene)
    with pytest.raises(TimeoutError, match="within 0 s"):
        scene.queue.read(0)


def test_await(scene: Scene) -> None:
    async def main() -> list[int]:
        scene.come()
        numbers = [await wait(scene)]
        waiting = asyncio.create_task(wait(scene))
        await asyncio.sleep(0)
        assert not waiting.done()
        scene.come()
        return [*numbers, await waiting]

    assert asyncio.run(main()) == [0, 1]


def test_async_for_ends_with_the_queue(scene: Scene) -> None:
    async def main() -> list[int]:
        numbers = []
        scene.come()
        async for record in scene.queue:
            numbers.append(scene.number(record))
            asyncio.get_running_loop().call_soon(scene.come if len(numbers) < 3 else scene.close)
        return numbers

    assert asyncio.run(main()) == [0, 1, 2]
    assert scene.queue.closed


def test_what_comes_is_given_once(scene: Scene) -> None:
    """To three threads, and three tasks of two loops each."""
    count, got = 300, list[int]()

    def thread() -> None:
        with contextlib.suppress(ClosedError):
            while True:
                got.append(scene.number(scene.queue.read(patience())))

    async def task() -> None:
        async for record in scene.queue:
            got.append(scene.number(record))
            await asyncio.sleep(0)

    async def tasks() -> None:
        await asyncio.gather(task(), task(), task())

    def produce() -> None:
        for _ in range(count):
            scene.come()
        until(lambda: len(got) == count, lambda: len(got))
        scene.close()

    run_all([thread] * 3 + [lambda: asyncio.run(tasks())] * 2 + [produce])
    assert sorted(got) == list(range(count))


def test_several_tasks_each_get_one(scene: Scene) -> None:
    async def main() -> list[int]:
        tasks = [asyncio.create_task(wait(scene)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(3):
            scene.come()
        return await asyncio.gather(*tasks)

    assert sorted(asyncio.run(main())) == [0, 1, 2]


def test_a_cancelled_task_takes_nothing(scene: Scene) -> None:
    """Neither before something comes, nor when it has come and the task has not run since."""

    async def main(number: int) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scene.queue, 0.02)
        waiting = asyncio.create_task(wait(scene))
        await asyncio.sleep(0)
        scene.come()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await wait(scene) == number

    asyncio.run(main(0))
    before = set(Path("/proc/self/fd").iterdir())
    asyncio.run(main(1))
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_close_by_a_thread_wakes_tasks_and_destroys(mock: MockIOMMUFD, scene: Scene) -> None:
    """While the loop does something else: what the tasks have of the queue does not keep the kernel from it."""

    async def main() -> list[object]:
        tasks = [asyncio.create_task(wait(scene)) for _ in range(3)]
        await asyncio.sleep(0)
        closing = threading.Thread(target=scene.close)
        closing.start()
        closing.join(patience())
        assert scene.queue.closed
        assert scene.queue not in mock.objects
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert [type(end) for end in asyncio.run(main())] == [ClosedError] * 3


@pytest.mark.parametrize("ended", [False, True])
def test_close_between_two_waits_destroys(mock: MockIOMMUFD, scene: Scene, ended: bool) -> None:
    """What a loop keeps of the queue between two waits does not keep the kernel from it; nor what a closed one has."""

    async def main() -> None:
        waiting = asyncio.create_task(wait(scene))
        await asyncio.sleep(0)
        scene.come()
        assert await waiting == 0
        if not ended:
            close()

    def close() -> None:
        scene.close()
        assert scene.queue not in mock.objects

    asyncio.run(main())
    if ended:
        close()
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and "eventpoll" in str(fd.readlink())]


def test_what_has_queued_up_is_read_in_order_with_turns_for_other_tasks(scene: Scene) -> None:
    count, turns = 50, 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        for _ in range(count):
            scene.come()
        task = asyncio.create_task(other())
        for number in range(count):
            assert await wait(scene) == number
        task.cancel()
        assert count // 2 <= turns <= count  # and no wait took the loop more than one pass

    asyncio.run(main())


def test_close_wakes_threads(mock: MockIOMMUFD, scene: Scene) -> None:
    ends = ends_of_waiters(scene.queue.read, lambda: scene.queue._queue._file.users == 3, scene.close)
    assert ends == [ClosedError] * 3
    assert scene.queue not in mock.objects


@contextlib.contextmanager
def alarm(handler: Callable[[], object]) -> Iterator[None]:
    """Soon, a signal that interrupts what is in the block."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: handler())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def test_close_by_a_signal_handler_that_interrupts_the_wait(mock: MockIOMMUFD, scene: Scene) -> None:
    with alarm(scene.close), pytest.raises(ClosedError):
        scene.queue.read(patience())
    assert scene.queue not in mock.objects


def test_an_exception_of_a_signal_handler_ends_the_wait_alone(scene: Scene) -> None:
    def handler() -> None:
        scene.come()
        raise InterruptedError

    with alarm(handler), pytest.raises(InterruptedError):
        scene.queue.read(patience())
    assert scene.number(scene.queue.read(0)) == 0


def test_a_forked_child_cannot_wait(scene: Scene, in_child: Callable[[Callable[[], Any]], Any]) -> None:
    async def each() -> None:
        async for _ in scene.queue:
            pass

    def child() -> int:
        uses: list[Callable[[], object]] = [
            lambda: scene.queue.read(0),
            scene.queue.fileno,
            lambda: asyncio.run(wait(scene)),
            lambda: asyncio.run(each()),
        ]
        refused = 0
        for use in uses:
            with contextlib.suppress(ForkedError):
                use()
                continue
            refused += 1
        scene.queue.close()
        with contextlib.suppress(ForkedError):
            asyncio.run(each())
            return -1
        return refused

    assert in_child(child) == 4
    scene.come()
    assert scene.number(scene.queue.read(0)) == 0
