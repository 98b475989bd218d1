"""The report of a user's error ends at the user's line; that of a defect of this package does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """\
from pyiommufd import DMABuffer, find_device
from pyiommufd.kernel.memory import buffer

def test_value():
    DMABuffer(-3)

def test_type():
    DMABuffer("x")

def test_ours():
    find_device("0000:ff:1f.7")

def test_cause():
    try:
        DMABuffer(-3)
    except ValueError as error:
        raise RuntimeError("the user's") from error

def test_defect(monkeypatch):
    monkeypatch.setattr(buffer, "ioctls", None)
    DMABuffer(4096)
"""


def run(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_report_ends_at_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_user.py").write_text(TESTS)
    said = run(tmp_path, "-k", "not defect")
    assert "4 failed" in said
    assert "test_user.py:5: ValueError" in said
    assert "test_user.py:8: TypeError" in said
    assert "test_user.py:11: DeviceNotFoundError" in said
    assert "test_user.py:17: RuntimeError" in said
    assert "buffer.py" not in said
    assert "devices.py" not in said
    assert "buffer.py" in run(tmp_path, "-k", "value", "--full-trace")
    assert "buffer.py" in run(tmp_path, "-k", "defect")


def test_own_tests_see_all(tmp_path: Path) -> None:
    """Whose folder is that of the package."""
    package = Path(__file__).parents[4] / "pyiommufd"
    file = tmp_path / "test_user.py"
    file.write_text(TESTS)
    assert "buffer.py" in run(tmp_path, f"--rootdir={package.parent}", "-c", "/dev/null", "-k", "value", str(file))
