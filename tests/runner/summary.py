"""What is printed at the end: every run, the slowest tests, the sweeps, and what failed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.runner.runs import Run, title

SLOWEST = 30


def summary(runs: Sequence[Run], start: float, unsteady: Iterable[str] = ()) -> int:
    """Print what came of all runs; 0 if all of it passed.

    Args:
        runs: What came of them.
        start: When they began, as `time.monotonic` has it.
        unsteady: What is to be said of the unsteady tests.
    """
    title("slowest test functions")
    for seconds, function, count in slowest(runs):
        print(f"{seconds:8.1f} s  {function}" + (f", {count} tests" if count > 1 else ""))
    title("sweeps: points taken, of all there are")
    for name, (taken, points) in sorted(swept(runs).items()):
        print(f"{taken:8} of {points:6}  {name}")
    title("summary")
    for run in runs:
        run.show()
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    print(f"in {minutes}:{seconds:02}")
    for run in runs:
        run.show_failures()
    said = list(unsteady)
    for each in said:
        print(each)
    print(f"unsteady: {sum(len(run.unsteady) for run in runs)}")
    passed, failed = sum(run.passed for run in runs), sum(run.failed for run in runs)
    total = f"{passed} passed, {failed} failed, {sum(run.skipped.total() for run in runs)} skipped"
    if remarks := [run.remark for run in runs if run.remark]:
        print(f"conformance: {', '.join(remarks)}")
    print(total)
    return int(failed > 0 or not passed)


def slowest(runs: Iterable[Run]) -> list[tuple[float, str, int]]:
    """The test functions that took longest: seconds, the function with its run, and how many tests it has."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for case in run.cases:
            found[f"{run.name}: {case.function}"].append(case.seconds)
    ordered = sorted(((sum(times), function, len(times)) for function, times in found.items()), reverse=True)
    return ordered[:SLOWEST]


def swept(runs: Iterable[Run]) -> dict[str, tuple[int, int]]:
    """The sweeps by name: points taken, and all there are; of several tests the sums."""
    found: dict[str, tuple[int, int]] = {}
    for sweep in (sweep for run in runs for sweep in run.sweeps):
        taken, points = found.get(sweep.name, (0, 0))
        found[sweep.name] = (taken + sweep.taken, points + sweep.points)
    return found
