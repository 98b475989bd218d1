"""Waiting with time limits that scale with how slow this machine is at the moment, because emulated or busy."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import TypeVar

# What `_work` takes on an idle machine: in an emulated guest 20 ms, on the machine that emulates it 1.3 ms. The limits
# in the tests are made for these.
_REFERENCE = 0.02 if "PYIOMMUFD_GUEST" in os.environ else 0.0015

T = TypeVar("T")


def patience(seconds: float = 120) -> float:
    """A time limit for something that is certain to happen: as given, or longer if the machine is slow at the moment.

    Args:
        seconds: The limit for an idle machine: in a guest, for one that is emulated.
    """
    return seconds * _slowness(int(time.monotonic() / 10))


def until(
    condition: Callable[[], T | None], what: str | Callable[[], object] = "", seconds: float = 120, pause: float = 0.02
) -> T:
    """Wait until something is so, and return what says it.

    Args:
        condition: Asked until it returns something true.
        what: What is waited for, or what says why it may not have come: for the error.
        seconds: As of `patience`.
        pause: Seconds between two questions.

    Raises:
        AssertionError: It is not so within this limit.
    """
    start = time.monotonic()
    while not (result := condition()):
        # The machine may have become slow only since the start: it is measured when the limit has passed.
        if time.monotonic() - start > seconds and time.monotonic() - start > (limit := patience(seconds)):
            raise AssertionError(f"not so within {limit:.1f} s: {what() if callable(what) else what or condition}")
        time.sleep(pause)
    return result


@functools.lru_cache(maxsize=1)
def _slowness(period: int) -> float:
    """How many times slower than the reference this machine is, or 1; measured once in each ten seconds.

    A short piece of work may run undisturbed even if many processes compete for the CPU: hence the load as well.
    """
    return max(1.0, _work() / _REFERENCE, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def _work() -> float:
    """Seconds that a fixed piece of work takes now; the longest of three, since other processes run in turns."""
    longest = 0.0
    for _ in range(3):
        start = time.perf_counter()
        sum(range(100_000))
        longest = max(longest, time.perf_counter() - start)
    return longest
