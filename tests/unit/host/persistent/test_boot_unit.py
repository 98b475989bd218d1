"""The systemd unit: what it says, and where it is put."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd.host.persistent import boot_unit, claim_file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(boot_unit, "FOLDER", tmp_path / "system")
    monkeypatch.setattr("shutil.which", lambda *what, **where: None)  # this machine's is left alone
    return tmp_path / "system"


def test_it_runs_this_environment_and_nothing_of_the_working_folder() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(boot_unit.text())
    command = shlex.split(unit["Service"]["ExecStart"])
    assert command == [sys.executable, "-I", "-m", "pyiommufd.cli", "claim", "--persistent"]
    assert unit["Service"]["Type"] == "oneshot"
    # The network waits for it, and without this for good.
    assert unit["Service"]["TimeoutStartSec"] == "10min"
    assert unit["Unit"]["ConditionPathExistsGlob"] == f"{claim_file.FOLDER}/*.toml"
    assert {"local-fs.target", "cryptsetup.target", "swap.target"} <= set(unit["Unit"]["After"].split())
    # What sets up the network may come before basic.target, and would then have to wait for itself.
    assert unit["Unit"]["DefaultDependencies"] == "no"
    assert "Conflicts=shutdown.target\nBefore=shutdown.target\n" in boot_unit.text()
    assert "@COMMAND@" not in boot_unit.text()


def test_command_of_an_environment_with_an_odd_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/a b/100%/$x/python")
    line = next(line for line in boot_unit.text().splitlines() if line.startswith("ExecStart="))
    assert line == "ExecStart='/a b/100%%/$$x/python' -I -m pyiommufd.cli claim --persistent"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    unit = tmp_path / boot_unit.NAME
    unit.write_text(boot_unit.text())
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_installed_and_removed(folder: Path) -> None:
    folder.mkdir()
    assert not boot_unit.is_installed()
    for _ in range(2):
        boot_unit.install()
        assert boot_unit.is_installed()
    assert boot_unit.file().read_text() == boot_unit.text()
    assert boot_unit.link() == folder / "multi-user.target.wants" / boot_unit.NAME
    assert boot_unit.link().resolve() == boot_unit.file()
    for _ in range(2):
        boot_unit.remove()
    assert not boot_unit.file().exists()
    assert not boot_unit.link().is_symlink()


def test_unit_of_another_environment_is_written_anew(folder: Path) -> None:
    boot_unit.install()
    boot_unit.file().write_text(boot_unit.text().replace(sys.executable, "/old/python"))
    assert not boot_unit.is_installed()
    boot_unit.install()
    assert boot_unit.file().read_text() == boot_unit.text()


def test_disabled_unit_is_not_installed(folder: Path) -> None:
    boot_unit.install()
    boot_unit.link().unlink()
    assert not boot_unit.is_installed()


def test_unit_of_an_administrator_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    boot_unit.file().write_text("[Unit]\nDescription=mine\n")
    boot_unit.install()
    assert boot_unit.is_installed()
    boot_unit.remove()
    assert boot_unit.file().read_text() == "[Unit]\nDescription=mine\n"
    assert not boot_unit.link().is_symlink()
