"""`python -m tests.release` from outside; `tests/boot/test_release.py` has what it makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages.blocks import ROOT


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--no-such-option", 2)])
def test_option_is_no_folder(argument: str, status: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.release", argument],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert (done.stderr if status else done.stdout).startswith("usage: python -m tests.release [-h] [FOLDER]\n")
    assert list(tmp_path.iterdir()) == []
