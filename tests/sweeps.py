"""Sweeps: tests over many points, such as every step at which a process can be killed. A run takes a sample, or all.

PYIOMMUFD_SAMPLE is the seed of the sample; without it every point is taken. `tests/run` sets it, from the commit where
no seed is given, so that every point has its turn in the run of time. PYIOMMUFD_SWEEPS names a file that gets a line of
JSON for each sweep, for the table at the end of the run.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

SAMPLE = "PYIOMMUFD_SAMPLE"
LOG = "PYIOMMUFD_SWEEPS"

T = TypeVar("T")


def sampling() -> bool:
    """Whether this run takes a sample."""
    return bool(os.environ.get(SAMPLE))


def sample(name: str, points: Iterable[T], count: int) -> list[T]:
    """The points of a sweep that this run takes, in their order: all of them, or so many that the seed chooses.

    Args:
        name: What the sweep is called, such as ``claims.kill``.
        points: All there are.
        count: How many a sample has.
    """
    every = list(points)
    if sampling() and count < len(every):
        taken = sorted(_random(name).sample(range(len(every)), count))
    else:
        taken = list(range(len(every)))
    _log(name, len(every), taken)
    return [every[number] for number in taken]


def amount(name: str, every: int, count: int) -> int:
    """How many generated cases this run takes: all that are wanted of it, or a sample's number.

    Args:
        name: What the sweep is called, such as ``arguments``.
        every: How many there are where every point is taken.
        count: How many a sample has.
    """
    taken = count if sampling() else every
    _log(name, every, taken)
    return taken


def seed(name: str) -> int:
    """Where a sweep of generated cases starts: the same in every run of one sample, and in every run of all."""
    return _random(name).randrange(1 << 32)


def _random(name: str) -> random.Random:
    return random.Random(f"{os.environ.get(SAMPLE)} {name}")  # noqa: S311 - no secret


def _log(name: str, points: int, taken: list[int] | int) -> None:
    # A guest that a test starts has the variable, and not the folder.
    if (path := os.environ.get(LOG)) and Path(path).parent.is_dir():
        with open(path, "a") as file:
            file.write(json.dumps({"name": name, "points": points, "taken": taken}) + "\n")


def read(log: Path) -> Iterator[tuple[str, int, int]]:
    """The sweeps in a log: the name of each, how many points it has, and how many were taken."""
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # of a guest that died in the middle of it
        taken = entry["taken"]
        yield entry["name"], entry["points"], taken if isinstance(taken, int) else len(taken)
