"""mypy and pyright, on what a user of the package has written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKERS = ("mypy", "pyright")


def check(checker: str, *files: Path, folder: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run a type checker as strictly as users may, without this project's settings; neither asks the network.

    Args:
        checker: One of `CHECKERS`.
        files: What to check.
        folder: A folder of the test's own, for what the checker keeps.
        python: The interpreter of the environment that has the package.
    """
    options = {
        "mypy": ["--strict", "--cache-dir", str(folder / "mypy"), "--python-executable", python],
        "pyright": ["--pythonpath", python],
    }
    command = [sys.executable, "-m", checker, *options[checker], *map(str, files)]
    # Not to ask PyPI whether there is a newer pyright.
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
