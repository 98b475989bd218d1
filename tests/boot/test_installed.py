"""The installed package, however it was installed: its version, and its types, which type checkers find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import pyiommufd
from tests.boot.packages import build_wheel, copy_source, make_environment
from tests.type_checkers import CHECKERS, check


@pytest.fixture(scope="module", params=["wheel", "editable"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "wheel":
        return make_environment(folder / "venv", str(build_wheel(folder)))
    return make_environment(folder / "venv", "-e", str(copy_source(folder / "source")))


def test_version(python: str, tmp_path: Path) -> None:
    """The build reads it from the source without importing the package, whose extension is not there yet."""
    code = "import importlib.metadata, pyiommufd; print(importlib.metadata.version('pyiommufd'), pyiommufd.__version__)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [pyiommufd.__version__] * 2


@pytest.mark.parametrize("checker", CHECKERS)
def test_one_line(checker: str, python: str, tmp_path: Path) -> None:
    """A line of what users write, a constant of the stub that the extension has, and a line that is wrong."""
    program = tmp_path / "program.py"
    program.write_text(
        "from pyiommufd import Group, find_device, uapi\n"
        'group: Group | None = find_device("02:01.0").group\n'
        "number: int = uapi.IOMMU_IOAS_MAP_WRITEABLE\n"
    )
    done = check(checker, program, folder=tmp_path, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    with program.open("a") as file:
        file.write("wrong: str = uapi.IOMMU_IOAS_MAP_WRITEABLE\n")
    done = check(checker, program, folder=tmp_path, python=python)
    assert done.returncode == 1
    assert "program.py:4" in done.stdout
