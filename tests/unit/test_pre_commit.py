"""The hooks of .pre-commit-config.yaml, run by pre-commit on a copy of this tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ".pre-commit-config.yaml"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with what the quick hooks read, and this environment where they look for it."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT / "pyiommufd", tree / "pyiommufd", ignore=shutil.ignore_patterns("__pycache__", "*.so", "_uapi.c")
    )
    for name in (CONFIG, "pyproject.toml", "build_cffi.py"):
        shutil.copy(ROOT / name, tree / name)
    (tree / ".gitignore").write_text("/.venv\n.ruff_cache\n")
    (tree / ".venv").symlink_to(sys.prefix)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    return tree


def run_hooks(tree: Path) -> subprocess.CompletedProcess[str]:
    """All but those that take mypy, which `tests/run` and test_public_names.py run on this tree."""
    environment = os.environ | {"SKIP": "mypy,public-names", "PRE_COMMIT_HOME": str(tree.parent / "cache")}
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_hooks_pass(copy: Path) -> None:
    done = run_hooks(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 3
    assert done.stdout.count("Skipped") == 2


def test_hooks_find_what_is_wrong(copy: Path) -> None:
    with (copy / "pyiommufd/errors.py").open("a") as file:
        file.write("import   os\n")
    with (copy / "pyiommufd/uapi/iommufd.h").open("a") as file:
        file.write("#define A_NEW_CONSTANT (1 << 3)\n")
    done = run_hooks(copy)
    assert done.returncode == 1
    assert done.stdout.count("Failed") == 3, done.stdout
    assert "A_NEW_CONSTANT: Final[int]" in (copy / "pyiommufd/uapi/__init__.pyi").read_text()
