"""How a long step is shown: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

from pyiommufd.printable import printable

_SPARSE = 30.0
_LIVE = 0.2


class Progress:
    """Reports steps and, within a step, how far it is.

    Args:
        stream: Where to.
        prefix: Starts every line.
    """

    def __init__(self, stream: TextIO, prefix: str = "") -> None:
        self._stream = stream
        self._prefix = prefix
        self._terminal = stream.isatty()
        self._open = False
        self._started = time.monotonic()
        self._shown = 0.0

    def step(self, text: str) -> None:
        """A new step begins; or something is to be known."""
        self.end()
        self._started = self._shown = time.monotonic()
        self._stream.write(f"{self._prefix}{printable(text)}\n")
        self._stream.flush()

    def update(self, text: str) -> None:
        """How far the step is; shown with the time since it began, and not every time."""
        now = time.monotonic()
        if now - self._shown < (_LIVE if self._terminal else _SPARSE):
            return
        self._shown = now
        minutes, seconds = divmod(int(now - self._started), 60)
        line = f"{self._prefix}  {printable(text)}, {minutes}:{seconds:02}"
        if self._terminal:
            self._stream.write(f"\r{line}\x1b[K")
            self._open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Finish the line that changes, if there is one."""
        if self._open:
            self._stream.write("\n")
            self._open = False
