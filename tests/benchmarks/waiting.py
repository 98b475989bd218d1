"""What waiting in an event loop costs, as ratios to the same by hand, by the guest's instruction clock.

`figures` starts the guest; run as a program, there, this measures: waiting ROUNDS.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Protocol

from pyiommufd import EventFD
from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import in_guest

ROUNDS = 1000


class ByHand:
    """An eventfd with one reader, which reads it for the one who waits: what does without a library.

    It takes no second task, and loses signals where the one who waits is cancelled, or has not come yet.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self.fd, self._readable)
        self.waiter: asyncio.Future[int] | None = None

    def _readable(self) -> None:
        if self.waiter is not None:
            self.waiter.set_result(os.eventfd_read(self.fd))

    def __await__(self) -> Generator[Any, None, int]:
        self.waiter = self.loop.create_future()
        return self.waiter.__await__()

    async def __aiter__(self) -> AsyncIterator[int]:
        while True:
            self.waiter = self.loop.create_future()
            yield await self.waiter

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        self.loop.remove_reader(self.fd)
        os.close(self.fd)


class Event(Protocol):
    """What both are."""

    def __await__(self) -> Generator[Any, None, int]: ...
    def __aiter__(self) -> AsyncIterator[int]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


Make = Callable[[], Event]


async def signalled_by_another_process(make: Make, rounds: int) -> int:
    """A task waits until another process signals, as the kernel does: the event loop has nothing else to do."""
    event, request = make(), os.eventfd(0, os.EFD_CLOEXEC)
    fd = event.fileno()
    process = os.fork()
    if not process:
        # Where there is one CPU, it does so when the event loop sleeps, not earlier.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        for _ in range(rounds):
            os.eventfd_read(request)
            os.eventfd_write(fd, 1)
        os._exit(0)
    start = time.monotonic_ns()
    for _ in range(rounds):
        os.eventfd_write(request, 1)
        await event
    took = time.monotonic_ns() - start
    os.waitpid(process, 0)
    os.close(request)
    event.close()
    return took


async def signalled_before(make: Make, rounds: int) -> int:
    """A task signals, and waits then."""
    event = make()
    fd = event.fileno()
    start = time.monotonic_ns()
    for _ in range(rounds):
        os.eventfd_write(fd, 1)
        await event
    took = time.monotonic_ns() - start
    event.close()
    return took


async def signalled_while_waiting(make: Make, rounds: int) -> int:
    """A task waits; what signals is called by the event loop then."""
    event = make()
    fd, later = event.fileno(), asyncio.get_running_loop().call_soon
    start = time.monotonic_ns()
    for _ in range(rounds):
        later(os.eventfd_write, fd, 1)
        await event
    took = time.monotonic_ns() - start
    event.close()
    return took


async def to_and_fro(make: Make, rounds: int) -> int:
    """Two tasks and two eventfds: each waits for its own, and signals that of the other."""
    one, other = make(), make()

    async def answer() -> None:
        fd = one.fileno()
        for _ in range(rounds):
            await other
            os.eventfd_write(fd, 1)

    answering = asyncio.ensure_future(answer())
    await asyncio.sleep(0)
    fd = other.fileno()
    start = time.monotonic_ns()
    for _ in range(rounds):
        os.eventfd_write(fd, 1)
        await one
    took = time.monotonic_ns() - start
    await answering
    one.close()
    other.close()
    return took


async def async_for(make: Make, rounds: int) -> int:
    """A task takes one signal after the other; what signals is called by the event loop meanwhile."""
    event = make()
    fd, later, left = event.fileno(), asyncio.get_running_loop().call_soon, rounds
    start = time.monotonic_ns()
    later(os.eventfd_write, fd, 1)
    async for _ in event:
        left -= 1
        if not left:
            break
        later(os.eventfd_write, fd, 1)
    took = time.monotonic_ns() - start
    event.close()
    return took


WORK: dict[str, Callable[[Make, int], Awaitable[int]]] = {
    "a task awaits an eventfd, which another process signals": signalled_by_another_process,
    "a task awaits an eventfd, which the same thread signals then": signalled_while_waiting,
    "two tasks signal each other's eventfds": to_and_fro,
    "async for over an eventfd": async_for,
    "an eventfd is signalled, and awaited then": signalled_before,
}
GOAL = 1.2


def measure(rounds: int) -> dict[str, list[float]]:
    """Nanoseconds a round, of the library and by hand; after a short run, as what is done once is not meant."""
    gc.disable()
    found = {}
    for name, work in WORK.items():

        async def both(work: Callable[[Make, int], Awaitable[int]] = work) -> list[float]:
            for make in (EventFD, ByHand):
                await work(make, 20)
            return [await work(make, rounds) / rounds for make in (EventFD, ByHand)]

        found[name] = asyncio.run(both())
    return found


def figures() -> Iterator[Figure]:
    """From a signal to the coroutine that has waited for it."""
    for name, (library, by_hand) in in_guest("waiting", str(ROUNDS)).items():
        yield Figure(name, library / by_hand, GOAL, "x add_reader")


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
