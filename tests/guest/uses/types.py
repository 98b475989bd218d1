"""The types of the functions that fixtures of these tests return."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pyiommufd import IOAS, Device, HostDevice

Refused = Callable[[HostDevice], list[tuple[str, str, str]]]
Driven = Callable[[HostDevice], AbstractContextManager[tuple[Device, IOAS]]]


class Runner(Protocol):
    """Runs a command."""

    def __call__(self, *command: str | Path) -> str: ...
