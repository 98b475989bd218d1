"""A shell in a running guest, on this terminal: what ``pytest --guest-shell`` opens at the first failure."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import threading
import tty
from typing import Any

import pytest

from pyiommufd.testing.guest.guest import Guest

SHELL_PORT = "pyiommufd.shell"
"""The name of the virtio port that the shell talks over."""

_END_TIME = 5.0


def open_shell(guest: Guest | None, config: pytest.Config, occasion: str) -> None:
    """Open a shell in the guest on this terminal, and return when it has ended.

    Args:
        guest: The guest, made with the port `SHELL_PORT`; None where it is gone.
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
        connect_terminal(guest)
    finally:
        capture.resume()


def connect_terminal(guest: Guest) -> int:
    """Run a shell in the guest on this process's terminal.

    Args:
        guest: The guest, made with the port `SHELL_PORT`.

    Returns:
        The shell's exit status.

    Raises:
        GuestError: The guest died.
    """
    port = guest.port(SHELL_PORT)
    size = shutil.get_terminal_size()
    outcome: list[int | BaseException] = []

    def run() -> None:
        command = [
            sys.executable,
            "-m",
            "pyiommufd.testing.inside.pty_shell",
            SHELL_PORT,
            str(size.lines),
            str(size.columns),
        ]
        try:
            outcome.append(guest.run(command, stdout=_to_terminal, stderr=_to_terminal).returncode)
        except BaseException as error:
            outcome.append(error)
        os.write(writer, b"x")

    reader, writer = os.pipe()
    before = termios.tcgetattr(0)
    thread = threading.Thread(target=run, name="pyiommufd-shell", daemon=True)
    thread.start()
    try:
        tty.setraw(0)
        sources = [0, port.fileno(), reader]
        while sources:
            for fd in select.select(sources, [], [])[0]:
                if fd == reader:
                    sources = []
                elif fd == 0:
                    if data := os.read(0, 4096):
                        port.sendall(data)
                    else:
                        sources.remove(0)
                elif data := port.recv(1 << 16):
                    _to_terminal(data)
                else:
                    sources.remove(port.fileno())
        while select.select([port], [], [], 0)[0] and (data := port.recv(1 << 16)):
            _to_terminal(data)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        thread.join(_END_TIME)
        if not thread.is_alive():
            os.close(reader)
            os.close(writer)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _to_terminal(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
