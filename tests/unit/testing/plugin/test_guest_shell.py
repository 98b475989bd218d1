"""`pytest --guest-shell` where there is no guest any more."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.terminal import end_of, on_terminal

TEST = """\
from pyiommufd.testing import Guest
from pyiommufd.testing.plugin.guest_shell import open_shell

def test_it(request):
    open_shell(Guest(), request.config, "a test failed")
"""


def test_shell_in_a_guest_that_is_gone(tmp_path: Path) -> None:
    """It says so, and the tests go on."""
    (tmp_path / "test_it.py").write_text(TEST)
    terminal = on_terminal(sys.executable, "-m", "pytest", "--color=no", "--rootdir", str(tmp_path), str(tmp_path))
    terminal.expect_exact("--guest-shell: the shell ended: the guest does not run")
    assert end_of(terminal) == 0
