"""Waiting in event loops: what a loop has of an eventfd between two waits, and what is left when either is closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyiommufd.errors import ClosedError, ForkedError
from pyiommufd.kernel.interrupts.eventfd import EventFD
from tests.opcodes import Interruption, opcodes
from tests.patience import patience, until

FILES = ("pyiommufd/kernel/waitable.py", "pyiommufd/kernel/interrupts/eventfd.py", "pyiommufd/uapi/ioctls.py")


@pytest.fixture
def event() -> Iterator[EventFD]:
    with EventFD() as event:
        yield event


def fds() -> set[str]:
    """The fds of this process, and what they are of."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found.add(f"{fd.name} {fd.readlink()}")
    return found


async def wait(event: EventFD) -> int:
    return await event


async def waiting(event: EventFD, count: int = 1) -> list[asyncio.Task[int]]:
    """Tasks that wait for it, and have begun to."""
    tasks = [asyncio.create_task(wait(event)) for _ in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # all but the first let the others have their turn
    return tasks


async def ends(*tasks: asyncio.Task[int]) -> list[object]:
    """What they have got, or the types of their errors."""
    async with asyncio.timeout(patience()):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else one for one in found]


class Selector(selectors.EpollSelector):
    """Counts what a loop asks of it."""

    def __init__(self) -> None:
        super().__init__()
        self.registered = self.passes = 0

    def register(self, *arguments: Any) -> Any:
        self.registered += 1
        return super().register(*arguments)

    def select(self, timeout: float | None = None) -> Any:
        self.passes += 1
        return super().select(timeout)


@contextlib.contextmanager
def counted() -> Iterator[tuple[Selector, asyncio.Runner]]:
    selector = Selector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.get_loop()
        yield selector, runner


def test_a_loop_registers_an_fd_once(event: EventFD) -> None:
    async def main() -> None:
        for count in range(1, 1001):
            (task,) = await waiting(event)
            event.signal(count)
            assert await task == count
            if count == 1:
                before.extend(sorted(fds()))

    before: list[str] = []
    with counted() as (selector, runner):
        registered = selector.registered
        runner.run(main())
        assert selector.registered == registered + 1
        assert sorted(fds()) == before


def test_a_wait_takes_a_loop_no_more_passes_than_a_reader_does(event: EventFD) -> None:
    async def main() -> None:
        event.signal()
        before = selector.passes
        assert await event == 1
        assert selector.passes == before  # the first one: other tasks have just had their turn
        for _ in range(100):
            asyncio.get_running_loop().call_soon(event.signal)
            before = selector.passes
            assert await event == 1
            assert selector.passes <= before + 3  # one signals, one sees it, one runs the task

    with counted() as (selector, runner):
        runner.run(main())


def test_what_nobody_waits_for_does_not_keep_a_loop_awake(event: EventFD) -> None:
    def signal_often() -> None:
        for _ in range(1000):
            event.signal()

    async def main() -> None:
        (task,) = await waiting(event)
        event.signal()
        await task
        event.signal()
        before = selector.passes
        await asyncio.sleep(0.05)
        assert selector.passes <= before + 5
        writer = threading.Thread(target=signal_often)
        before = selector.passes
        writer.start()
        await asyncio.sleep(0.05)
        writer.join()
        assert selector.passes <= before + 5
        assert await event == 1001
        (task,) = await waiting(event)
        event.signal(7)
        assert await task == 7

    with counted() as (selector, runner):
        runner.run(main())


@pytest.mark.parametrize(("signals", "times"), [(1, 1), (2, 10)])
def test_an_fd_is_registered_again_only_after_signals_that_nobody_waited_for(
    event: EventFD, signals: int, times: int
) -> None:
    """One does not count: it comes while the one before is being dealt with."""

    async def main() -> None:
        for _ in range(10):
            await served(event)
            await unheeded(event, signals)
            assert await event == signals

    with counted() as (selector, runner):
        before = selector.registered
        runner.run(main())
        assert selector.registered == before + times


def test_two_tasks_share_what_comes(event: EventFD) -> None:
    async def count(place: int) -> None:
        async for _ in event:
            counts[place] += 1

    async def main() -> None:
        tasks = [asyncio.create_task(count(place)) for place in range(2)]
        for _ in range(100):
            for _ in range(5):
                await asyncio.sleep(0)
            event.signal()
        while sum(counts) < 100:
            await asyncio.sleep(0)
        event.close()
        await asyncio.gather(*tasks)

    counts = [0, 0]
    asyncio.run(main())
    assert min(counts) >= 40


def test_those_who_wait_are_served_in_order(event: EventFD) -> None:
    async def main() -> None:
        tasks = await waiting(event, 5)
        for at, task in enumerate(tasks):
            event.signal(at + 1)
            assert await task == at + 1
            assert not any(each.done() for each in tasks[at + 1 :])

    asyncio.run(main())


def test_other_tasks_run_at_least_every_second_time(event: EventFD) -> None:
    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for count in range(1, 101):
            event.signal()
            assert await event == 1
            assert turns >= count // 2
        task.cancel()

    asyncio.run(main())


def test_cancelled_waits_leave_nothing(event: EventFD) -> None:
    async def main() -> None:
        for _ in range(50):
            tasks = await waiting(event, 2)
            tasks[1].cancel()
            tasks[0].cancel()
            assert await ends(*tasks) == [asyncio.CancelledError] * 2
        (watch,) = event._watches.values()
        assert not watch.waiters

    asyncio.run(main())


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_task_that_is_cancelled_when_it_has_been_woken_takes_nothing(event: EventFD, others: int) -> None:
    async def main() -> None:
        first, *rest = await waiting(event, 1 + others)
        event.signal(5)
        (watch,) = event._watches.values()
        while len(watch.waiters) > others:
            await asyncio.sleep(0)
        # It runs after this task, which the loop has to run first as well.
        first.cancel()
        assert await ends(first) == [asyncio.CancelledError]
        for task in rest:
            assert await task == 5
            event.signal(5)
        assert await event == 5

    for _ in range(2):
        asyncio.run(main())


def test_loops_that_were_closed_are_forgotten() -> None:
    before = fds()
    with EventFD() as event:
        seen = set()
        for _ in range(5):
            asyncio.run(served(event))
            assert len(event._watches) == 1
            seen.add(len(fds()))
        assert len(seen) == 1
    assert fds() == before


async def served(event: EventFD) -> None:
    """Wait, so that the loop watches it."""
    (task,) = await waiting(event)
    event.signal()
    assert await task == 1


async def unheeded(event: EventFD, count: int) -> None:
    """So many signals, with the loop's passes to see each, which nobody waits for."""
    for _ in range(count):
        event.signal()
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("signals", [0, 1, 2])
def test_nothing_is_left_whether_the_loop_or_the_object_ends_first(signals: int, dropped: bool) -> None:
    """The object: in a loop, between two runs of one, after it; and with a close, or dropped without one."""

    def end() -> None:
        if dropped:
            with pytest.warns(ResourceWarning, match="EventFD"):
                kept.clear()
        else:
            closed.append(kept.pop())
            closed[-1].close()

    async def outside() -> None:
        await served(kept[0])
        await unheeded(kept[0], signals)

    async def inside() -> None:
        await outside()
        end()

    closed: list[EventFD] = []
    before = fds()
    kept = [EventFD()]
    asyncio.run(outside())
    end()
    assert fds() == before

    kept.append(EventFD())
    asyncio.run(inside())
    assert fds() == before

    with asyncio.Runner() as runner:
        runner.get_loop()
        loop = fds()
        kept.append(EventFD())
        runner.run(outside())
        end()
        runner.run(asyncio.sleep(0))
        runner.run(asyncio.sleep(0))
        assert fds() == loop
    assert fds() == before


def test_close_wakes_who_waits_in_other_threads_loops(event: EventFD) -> None:
    before = fds()
    found: list[list[object]] = []

    async def main() -> None:
        tasks = await waiting(event, 3)
        found.append(await ends(*tasks))
        await asyncio.sleep(0)
        together.wait(patience())
        epolls.append(len([one for one in fds() if "eventpoll" in one]))
        together.wait(patience())

    epolls: list[int] = []
    together = threading.Barrier(2)
    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: sum(len(watch.waiters) for watch in list(event._watches.values())) == 6, "all wait")
    event.close()
    for thread in threads:
        thread.join(patience())
    assert found == [[ClosedError] * 3] * 2
    assert epolls == [2, 2]  # the loops' own
    assert fds() < before


def test_close_by_a_signal_handler_while_the_loop_sleeps(event: EventFD) -> None:
    async def main() -> list[object]:
        tasks = await waiting(event, 2)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return await ends(*tasks)

    def handler(number: int, frame: FrameType | None) -> None:
        event.close()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        assert asyncio.run(main()) == [ClosedError] * 2
    finally:
        signal.signal(signal.SIGALRM, before)


def test_nothing_is_lost_between_loops_and_threads(event: EventFD) -> None:
    """Each signal is given once: to tasks of two loops, some of which are cancelled all the time, and to threads."""
    totals: list[int] = []

    def thread() -> None:
        with contextlib.suppress(ClosedError):
            while True:
                totals.append(event.wait())

    async def task() -> None:
        async for count in event:
            totals.append(count)

    async def impatient() -> None:
        with contextlib.suppress(ClosedError):
            while True:
                one = asyncio.ensure_future(wait(event))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                one.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    totals.append(await one)

    async def main() -> None:
        await asyncio.gather(task(), impatient(), task())

    works: list[Callable[[], object]] = [thread, thread, lambda: asyncio.run(main()), lambda: asyncio.run(main())]
    threads = [threading.Thread(target=work) for work in works]
    for one in threads:
        one.start()
    for _ in range(3000):
        event.signal()
    until(lambda: sum(totals) >= 3000, lambda: sum(totals))
    event.close()
    for one in threads:
        one.join(patience())
    assert sum(totals) == 3000


def test_a_forked_child_closes_what_it_has_and_nothing_else(event: EventFD) -> None:
    async def main() -> None:
        (task,) = await waiting(event)
        child = os.fork()
        if not child:
            os._exit(in_child())
        assert os.waitpid(child, 0)[1] == 0
        event.signal(3)
        assert await task == 3

    def in_child() -> int:
        try:
            with contextlib.suppress(ForkedError):
                next(event.__await__())
                return 1
        except RuntimeError:  # as asyncio says, whose loop is the parent's
            pass
        has = len(fds())
        event.close()
        # The eventfd, what wakes its waiters, a copy of that, and the epoll fd.
        return int(has - len(fds()) != 4)

    asyncio.run(main())


async def both_served(event: EventFD, signalled: Callable[[], None]) -> list[object]:
    """What two tasks get that wait. There is a signal for each that has taken one, and for the other."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    left = {asyncio.create_task(wait(event)) for _ in range(2)}
    found = list[object]()
    asyncio.get_running_loop().call_soon(signalled)
    while left:
        done, left = await asyncio.wait(left, timeout=patience(), return_when=asyncio.FIRST_COMPLETED)
        assert done, "nobody has been woken"
        found += await ends(*done)
        if left and not event.closed and not select.select([event._file.fd], [], [], 0)[0]:
            signalled()
    return found


@pytest.mark.parametrize("what", ["raises", "closes", "signals"])
def test_a_signal_handler_before_any_opcode(what: str) -> None:
    """Of a task or of the callback of the loop: nobody is left asleep, and no fd is left."""
    before, stop, seen, where = fds(), 0, set[str](), ""
    while where != "the end":
        event, found, written = EventFD(), list[object](), list[int]()
        fd = event.fileno()

        def signalled(fd: int = fd, written: list[int] = written) -> None:
            os.eventfd_write(fd, 1)
            written.append(1)

        def run(event: EventFD = event, signalled: Any = signalled, found: list[object] = found) -> None:
            found += asyncio.run(both_served(event, signalled))

        handlers = {"closes": event.close, "signals": signalled}
        _, where = opcodes(run, FILES, stop, handlers.get(what, lambda: None), raises=what == "raises")
        assert len(found) == 2
        assert set(found) <= {1, 2, {"raises": Interruption, "closes": ClosedError}.get(what)}
        taken = sum(one for one in (*found, 0 if event.closed else event.take()) if isinstance(one, int))
        # What has been taken from the kernel and is being given to an interrupted task is lost with it.
        lost = {"signals": 0, "raises": where.endswith((" take", " __await__")), "closes": 2}[what]
        assert len(written) - lost <= taken <= len(written), where
        event.close()
        gc.collect()
        assert fds() == before, where
        seen.add(where.rpartition(" ")[2])
        stop += 1
    assert {"__await__", "_readable", "attend", "take", "_watch"} <= seen
