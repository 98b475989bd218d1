"""What ``pytest --guest-shell`` opens at the first failure."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.guest import Guest
from pyiommufd.testing.guest.shell import run_shell


def open_shell(guest: Guest | None, config: pytest.Config, occasion: str) -> None:
    """Open a shell in the guest on this terminal, and return when it has ended.

    Args:
        guest: The guest; None where it is gone.
        config: Of the run whose terminal it is.
        occasion: Why.
    """
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")

    def say(text: str) -> None:
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"--guest-shell: {text}", yellow=True)

    if guest is None:
        say(f"{occasion}: there is no guest to open a shell in")
        return
    # Standard input is captured all through the run; for the shell it is the terminal again.
    capture.suspend(in_=True)
    try:
        if not (os.isatty(0) and os.isatty(1)):
            say(f"{occasion}; there is no terminal for a shell in the guest: run this in one. Going on with the tests")
            return
        say(f"{occasion}; this is a shell in the guest, its end (exit, Ctrl-D) goes on with the tests")
        run_shell(guest)
    except (GuestError, OSError) as error:
        say(f"the shell ended: {error}")
    finally:
        capture.resume()
