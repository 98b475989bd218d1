"""What the plugin costs a session that does not use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# At the end, so that collection, the report and the fixtures' own set-up are over too.
CONFTEST = """
import sys

def pytest_unconfigure():
    print("modules:", *(name for name in sys.modules if name.partition(".")[0] == "pyiommufd"))
    print("foreign:", *({"_cffi_backend", "pyudev", "click", "qemu"} & set(sys.modules)))
"""


def test_idle_session_loads_the_plugin_alone(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text("def test_it(): ...\n")
    command = [sys.executable, "-m", "pytest", "-q", "-s"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(":", 1) for line in done.stdout.splitlines() if line.startswith(("modules:", "foreign:")))
    assert set(said["modules"].split()) == {
        "pyiommufd",
        "pyiommufd.on_demand",
        "pyiommufd.testing",
        "pyiommufd.testing.plugin",
        "pyiommufd.testing.plugin.fixtures",
        "pyiommufd.testing.plugin.marker",
        "pyiommufd.version",
    }
    assert said["foreign"].split() == []
