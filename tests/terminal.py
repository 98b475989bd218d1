"""Programs on a terminal, as those who sit at one have them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pexpect

from tests.patience import patience


def on_terminal(*command: str, environment: Mapping[str, str] | None = None) -> pexpect.spawn[str]:
    """Start a program on a terminal of 24 lines and 80 columns.

    Args:
        command: The program and its arguments.
        environment: Added to this process's own.
    """
    return pexpect.spawn(
        command[0],
        list(command[1:]),
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=patience(60),
        env=os.environ | {"TERM": "xterm"} | dict(environment or {}),
    )


def end_of(terminal: pexpect.spawn[str]) -> int | None:
    """The program's exit status, once it has ended and what it has said is read."""
    terminal.expect(pexpect.EOF)
    terminal.close()
    return terminal.exitstatus
