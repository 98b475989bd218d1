"""The steps of a kept claim that concern files: what is printed before it is done, a line each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ..claims.steps import Step

_log = logging.getLogger(__name__)


class FileAction(StrEnum):
    """What is done with a file."""

    WRITE = "write"
    REMOVE = "remove"
    ENABLE = "write and enable"
    DISABLE = "disable and remove"
    GRANT = "let open"
    REVOKE = "no longer let open"


@dataclass(frozen=True, slots=True)
class FileStep:
    """One step: a file, what is done with it, and for whom.

    Attributes:
        path: The file; the node of a device is given as the device's name, as it is there with the driver only.
        action: What is done.
        value: The user, for `FileAction.GRANT` and `FileAction.REVOKE`.
    """

    path: str
    action: FileAction
    value: str | None = None

    def __str__(self) -> str:
        match self.action:
            case FileAction.GRANT:
                return f"{self.path}: let {self.value} open it"
            case FileAction.REVOKE:
                return f"{self.path}: no longer let {self.value} open it"
        return f"{self.path}: {self.action}"


AnyStep = Step | FileStep
"""A step of a kept claim: of a device, or of a file."""

Report = Callable[[AnyStep], None]
"""Told of each step before it is taken."""


def unfailing(report: Report) -> Report:
    """The same for what undoes: the machine comes first, and once telling has failed nobody is told any more."""
    tell: Report | None = report

    def told(step: AnyStep) -> None:
        nonlocal tell
        if tell is None:
            return
        try:
            tell(step)
        except Exception:
            _log.warning("whoever is told of the steps has failed; the release goes on", exc_info=True)
            tell = None

    return told
