"""How progress is shown, on a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pty

import pytest

from pyiommufd.testing.provision import progress
from pyiommufd.testing.provision.progress import Progress


def test_lines_are_sparse_off_a_terminal() -> None:
    stream = io.StringIO()
    shown = Progress(stream, "x: ")
    shown.step("compiling")
    for number in range(100):
        shown.update(f"{number} files")
    assert stream.getvalue() == "x: compiling\n"


def test_one_line_changes_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LIVE", 0.0)
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w", closefd=False) as stream:
            shown = Progress(stream)
            shown.step("compiling")
            for number in range(3):
                shown.update(f"{number} files")
            shown.step("done")
        text = ""
        while not text.endswith("done\n"):
            text += os.read(ours, 4096).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)
    assert text == "compiling\n\r  0 files, 0:00\x1b[K\r  1 files, 0:00\x1b[K\r  2 files, 0:00\x1b[K\ndone\n"
