"""Calls with generated arguments, good and bad ones."""

from __future__ import annotations

import itertools
import mmap
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pyiommufd import IOMMUFDError
from tests.guest.dma import IOVA

PAGE = mmap.PAGESIZE
REFUSALS = (TypeError, ValueError, IOMMUFDError)

Values = st.SearchStrategy[Any]

EDGES = [
    *(
        sign * (1 << bits) + off
        for bits in (0, 12, 20, 28, 31, 32, 48, 62, 63, 64, 128)
        for sign in (1, -1)
        for off in (-1, 0, 1)
    ),
    IOVA,
    IOVA + 1,
    0xFEE0_0000,
    (1 << 64) - PAGE,
]
NUMBERS = [
    *(kind(value) for kind in (np.int8, np.uint8, np.int64, np.uint64) for value in (0, 1, 127)),
    np.uint64(2**64 - 1),
    np.int64(-1),
    np.int64(2**63 - 1),
    np.uint64(IOVA),
    np.float32(4096.5),
    np.float64(0),
    np.bool_(True),
    np.array(4096),
    np.array([4096]),
    np.array([1, 2]),
    True,
    False,
    0.0,
    1.5,
    -1.0,
    float("nan"),
    float("inf"),
    1e30,
    4096j,
]
TEXTS = [
    "",
    "\0",
    "a\0b",
    "0",
    "-1",
    " ",
    "\n",
    "..",
    "/",
    "/dev/iommu\0",
    "/dev/null",
    "/dev/vfio/devices/vfio0\n",
    "/dev/vfio/devices/vfio" + "9" * 5000,
    "/sys/devices",
    "/sys/bus/pci/devices/../devices",
    "/proc/self/fd/0",
    "x" * 5000,
    "/" + "x/" * 3000,
    "\ud800",
    "\udc80/x",
    "Ω:Ω.0",
    "\u0660\u0660\u0660\u0660:\u0660\u0662:\u0660\u0661.\u0660",
    "0000:02:01.0\0",
    "0000:02:1f.9",
    "ffffffff:ff:1f.7",
    "1234:11e8",
    "1234:11e8 ",
    "pci",
    "%s%n",
    "*:*.*",
    str(uuid.UUID(int=0)),
]


def pick(values: Sequence[Any]) -> Values:
    """One of these; `sampled_from` would hash them, which released memory refuses."""
    return st.integers(0, len(values) - 1).map(lambda number: values[number])


def integers() -> Values:
    """Of any size, and the edges of the widths that the kernel has."""
    return st.one_of(pick(EDGES), st.integers(), st.integers(-(1 << 70), 1 << 70))


class Hammer:
    """Calls with generated arguments, and a count of the examples.

    Args:
        anything: Objects that an argument may be, mostly wrong ones.
        wanted: How many examples the group of calls gets.
        start: Of the numbers that hypothesis starts from, one for each call of this.
    """

    def __init__(self, anything: list[Any], wanted: int, start: int) -> None:
        self.wanted = wanted
        self.seeds = itertools.count(start)
        self.junk = st.one_of(
            pick([*NUMBERS, *TEXTS, *anything]),
            integers(),
            st.text(max_size=8),
        )
        self.examples = 0
        self.accepted = 0

    def mix(self, *good: Any, strategy: Values | None = None) -> Values:
        """Now a good value, now none."""
        strategies = [self.junk]
        if good:
            strategies.append(pick(good))
        if strategy is not None:
            strategies.append(strategy)
        return st.one_of(*strategies)

    def __call__(
        self,
        call: Callable[..., Any],
        examples: int,
        *arguments: Values,
        undo: Callable[[Any], object] | None = None,
        **keywords: Values,
    ) -> None:
        """Call it so often; what raises another exception than it should fails the test.

        Args:
            call: What to call.
            examples: How often, of 10,000 in the group.
            arguments: How to make its positional arguments.
            undo: What to do with a result.
            keywords: How to make its keyword arguments, each of which is left out at times.
        """

        @seed(next(self.seeds))
        @settings(
            max_examples=max(10, examples * self.wanted // 10_000),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.tuples(*arguments), st.fixed_dictionaries({}, optional=keywords))
        def example(positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.examples += 1
            try:
                result = call(*positional, **named)
            except REFUSALS as error:
                str(error)  # is a message, whatever was passed
                return
            self.accepted += 1
            if undo is not None:
                undo(result)

        example()
