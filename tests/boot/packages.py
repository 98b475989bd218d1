"""The package as others install it: from its wheel, or editable from a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PARTS = ("pyiommufd", "build_cffi.py", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def copy_source(folder: Path) -> Path:
    """A copy of what the package is made from, without anything that was built here."""
    for part in _PARTS:
        path, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(path, target)
    return folder


def build_wheel(folder: Path) -> Path:
    """The wheel, built in a folder of its own."""
    source = copy_source(folder / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path, *install: str) -> str:
    """A virtual environment with what pip is told to install: its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", *install], check=True, capture_output=True)
    return python
