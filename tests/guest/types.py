"""The types of what fixtures of several folders return."""

from __future__ import annotations

from collections.abc import Callable

DriverState = dict[str, tuple[str | None, str | None]]
"""Driver and override of each device, by its name."""
ReadDriverState = Callable[[], DriverState]
