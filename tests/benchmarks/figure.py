"""One line of the table that tests/benchmark prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A figure, mostly how much longer something takes than the same done otherwise.

    Attributes:
        name: What was measured.
        ratio: The figure.
        goal: What it is to be at most; None: a peer's, or given for comparison.
        unit: What the ratio is to, as in "x C"; or what it is in, as in "ms".
    """

    name: str
    ratio: float
    goal: float | None
    unit: str

    @property
    def met(self) -> bool:
        """Whether it is as it is to be."""
        return self.goal is None or self.ratio <= self.goal
