"""The types of the functions that fixtures of these tests return."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from pyiommufd import IOAS, Device, HostDevice

Result = TypeVar("Result")

Refused = Callable[[HostDevice], list[tuple[str, str, str]]]
Driven = Callable[[HostDevice], AbstractContextManager[tuple[Device, IOAS]]]


class Runner(Protocol):
    """Runs a command."""

    def __call__(self, *command: str | Path) -> str: ...


class Waiter(Protocol):
    """Waits until a function returns something."""

    def __call__(self, function: Callable[[], Result]) -> Result: ...
