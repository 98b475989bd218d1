"""Text with terminal control sequences, and the check that none of them is printed unescaped."""

from __future__ import annotations

CONTROL_TEXT = "x\x1b]0;owned\x07\x1b[2K\r\nforged: all is well\x7f\x9b31m\x85\u2028\u202e\udcffend"
"""Sets a title, clears a line, starts a line of its own; direction marks, and a byte that is not UTF-8."""


def invisible(output: str | bytes) -> str:
    """What is not printable in an output, newlines aside."""
    text = output.decode() if isinstance(output, bytes) else output
    return "".join(one for one in text if one != "\n" and not one.isprintable())
