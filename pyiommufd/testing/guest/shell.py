"""A shell in a running guest, on this process's terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import termios
import tty

from pyiommufd.testing.guest.filesystem import guest_environment
from pyiommufd.testing.guest.guest import Guest


def run_shell(guest: Guest, *, timeout: float | None = None) -> int:
    """Run a shell in the guest on the terminal that file descriptors 0 and 1 are, in the main thread.

    Args:
        guest: The guest, started.
        timeout: As of `Guest.run`.

    Returns:
        The shell's exit status, negative where a signal ended it.

    Raises:
        GuestTimeoutError: The time limit passed.
        GuestError: The guest died.
        OSError: There is no terminal.
    """
    # Without its start-up files: those are for this machine.
    has_bash = shutil.which("bash", path=guest_environment()["PATH"]) is not None
    shell = ["bash", "--norc", "--noprofile"] if has_bash else ["sh"]
    try:
        before = termios.tcgetattr(0)
    except termios.error as error:
        raise OSError(*error.args) from None
    try:
        # What was typed while the guest booted stays.
        tty.setraw(0, termios.TCSADRAIN)
        result = guest.run(
            shell, env={"PS1": "guest:\\w# "}, stdin=0, stdout=_to_terminal, terminal=True, timeout=timeout
        )
    finally:
        with contextlib.suppress(termios.error):  # the terminal has hung up
            termios.tcsetattr(0, termios.TCSADRAIN, before)
    return result.returncode


def _to_terminal(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
