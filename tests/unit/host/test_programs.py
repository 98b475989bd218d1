"""Programs that are run as root: the system's, whatever is on the PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.host import drivers, programs
from pyiommufd.host.persistent import boot_unit

PROGRAM = '#!/bin/sh\n: > "$0.was-run"\n'


def make(folder: Path, *names: str) -> Path:
    """Programs that leave a trace."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(programs, "_FOLDERS", (str(tmp_path / "system"),))
    return make(tmp_path / "system", "modprobe", "systemctl")


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, first on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "users"), prepend=":")
    return make(tmp_path / "users", "sh", "modprobe", "systemctl", "no-such-program")


def test_system_comes_before_the_path(users: Path) -> None:
    assert programs.system_program("sh") in ("/usr/bin/sh", "/bin/sh")
    assert programs.system_program("no-such-program") == str(users / "no-such-program")
    assert programs.system_program("nor-such-a-program") is None


def test_what_is_run_as_root_is_the_system_s(
    system: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_unit, "FOLDER", tmp_path / "units")
    assert drivers.modprobe("no-such-module") == ""
    boot_unit.install()
    assert sorted(path.name for path in system.glob("*.was-run")) == ["modprobe.was-run", "systemctl.was-run"]
    assert list(users.glob("*.was-run")) == []
