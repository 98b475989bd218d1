"""Event fds: waiting in threads and event loops, closing under those who wait."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd.errors import ClosedError, ForkedError
from pyiommufd.kernel.handle import Handle
from pyiommufd.kernel.interrupts.eventfd import EventFD
from pyiommufd.uapi import ioctls
from tests.patience import patience, until


@pytest.fixture
def event() -> Iterator[EventFD]:
    with EventFD() as event:
        yield event


def test_signals_are_counted(event: EventFD) -> None:
    assert event.take() == 0
    event.signal()
    event.signal(41)
    assert event.wait() == 42
    event.signal((1 << 64) - 2)
    assert event.take() == (1 << 64) - 2


@pytest.mark.parametrize("count", [0, -1, (1 << 64) - 1])
def test_no_number_of_signals(event: EventFD, count: int) -> None:
    with pytest.raises(ValueError, match="not a number of signals"):
        event.signal(count)


def test_wait_ends_in_time(event: EventFD) -> None:
    for timeout in (0, -1, 0.05):
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="EventFD"):
            event.wait(timeout)
        assert time.monotonic() - start >= timeout
    with pytest.raises(TypeError):
        event.wait("1")  # type: ignore[arg-type]
    event.signal()
    assert event.wait(1e12) == 1


def test_nothing_is_lost_between_threads(event: EventFD) -> None:
    totals = [0] * 4

    def count(place: int) -> None:
        try:
            while True:
                totals[place] += event.wait()
        except ClosedError:
            pass

    threads = [threading.Thread(target=count, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5000):
        event.signal()
    until(lambda: sum(totals) >= 5000, "all signals are counted")
    event.close()
    for thread in threads:
        thread.join(patience())
    assert sum(totals) == 5000


def test_close_while_a_thread_waits() -> None:
    for _ in range(50):
        event = EventFD()
        fd = event.fileno()
        ended: list[type[BaseException]] = []

        def wait(event: EventFD = event, ended: list[type[BaseException]] = ended) -> None:
            try:
                event.wait()
            except ClosedError as error:
                ended.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        event.close()
        thread.join(patience())
        assert ended == [ClosedError]
        assert event.closed
        assert not Path(f"/proc/self/fd/{fd}").exists()


def test_close_is_no_signal_to_whoever_reads_it_elsewhere() -> None:
    """The kernel does, which would take it for an order: to write a register, to unmask, to interrupt a VM."""
    event = EventFD()
    with Handle() as elsewhere:
        elsewhere._open_with(ioctls.file_duplicate, event._live())

        def wait() -> None:
            with pytest.raises(ClosedError):
                event.wait()

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: event._file.users, "the thread waits")
        event.close()
        thread.join(patience())
        assert not ioctls.file_readable(elsewhere._live())


def test_close_by_a_signal_handler_that_interrupts_the_wait() -> None:
    event = EventFD()
    before = signal.signal(signal.SIGALRM, lambda number, frame: event.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(ClosedError):
            event.wait(patience())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert event.closed


def test_use_after_close(event: EventFD) -> None:
    event.signal()
    event.close()
    event.close()
    for use in (event.fileno, event.take, event.wait, event.signal):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError):
        asyncio.run(_wait(event))
    assert repr(event) == "<EventFD closed>"


async def _wait(event: EventFD) -> int:
    return await event


def test_await(event: EventFD) -> None:
    async def main() -> list[int]:
        event.signal(3)
        counts = [await event]
        waiting = asyncio.create_task(_wait(event))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        event.signal(2)
        counts.append(await waiting)
        return counts

    assert asyncio.run(main()) == [3, 2]


def test_several_tasks_each_get_their_own(event: EventFD) -> None:
    async def main() -> list[int]:
        tasks = [asyncio.create_task(_wait(event)) for _ in range(5)]
        for done in range(5):
            while sum(task.done() for task in tasks) < done:
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            assert sum(task.done() for task in tasks) == done
            event.signal()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [1] * 5


def test_cancelled_task_takes_nothing(event: EventFD) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(event, 0.02)
        event.signal()

    asyncio.run(main())
    assert event.take() == 1
    before = set(Path("/proc/self/fd").iterdir())
    asyncio.run(main())
    assert event.take() == 1
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_close_wakes_tasks(event: EventFD) -> None:
    async def main() -> list[object]:
        tasks = [asyncio.create_task(_wait(event)) for _ in range(3)]
        await asyncio.sleep(0.02)
        event.close()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert [type(error) for error in asyncio.run(main())] == [ClosedError] * 3


def test_async_for(event: EventFD) -> None:
    async def main() -> list[int]:
        counts = []
        event.signal(1)
        async for count in event:
            counts.append(count)
            if count == 3:
                event.close()
            else:
                asyncio.get_running_loop().call_later(0.01, event.signal, count + 1)
        return counts

    assert asyncio.run(main()) == [1, 2, 3]


def test_other_tasks_have_their_turn_where_there_is_always_more(event: EventFD) -> None:
    async def main() -> int:
        other = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(other.set_result, None)
        event.signal()
        turns = 0
        async for _ in event:
            turns += 1
            if other.done() or turns == 100:
                return turns
            event.signal()
        return 0

    assert asyncio.run(main()) < 100


def test_unclosed_one_warns() -> None:
    event = EventFD()
    with pytest.warns(ResourceWarning, match="EventFD"):
        del event


def test_forked_child_cannot_take_what_is_its_parents(event: EventFD) -> None:
    event.signal()
    child = os.fork()
    if not child:
        refused = 0
        for use in (event.take, event.wait, event.signal, event.fileno):
            try:
                use()
            except ForkedError:
                refused += 1
        event.close()
        os._exit(0 if refused == 4 and event.closed else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert event.take() == 1
