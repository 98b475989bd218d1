"""Time limits that grow with how slow this machine is at the moment: emulated, or busy with something else."""

from __future__ import annotations

import time

# What `_work` takes in an emulated guest on an idle machine. The limits in the tests are made for that one.
_REFERENCE = 0.02


def patience(seconds: float) -> float:
    """A time limit for what is sure to come: as given, or longer where this machine is slower than an idle guest.

    Args:
        seconds: The limit for a test in an emulated guest on an idle machine.
    """
    return seconds * max(1.0, _work() / _REFERENCE)


def _work() -> float:
    """Seconds that a fixed piece of work takes now; the longest of three, as what is busy is so by turns."""
    longest = 0.0
    for _ in range(3):
        start = time.perf_counter()
        sum(range(100_000))
        longest = max(longest, time.perf_counter() - start)
    return longest
