"""The command as a whole: its list of commands, its version, its entry points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import pyiommufd
from pyiommufd.cli.group import COMMANDS, cli


def test_every_command_can_be_imported() -> None:
    with click.Context(cli) as context:
        assert all(cli.get_command(context, name) is not None for name in COMMANDS)
        assert cli.get_command(context, "no-such") is None


@pytest.mark.parametrize("width", [80, 200])
def test_list_of_commands_has_a_line_for_each(width: int) -> None:
    text = CliRunner().invoke(cli, ["--help"], terminal_width=width).output
    lines = text.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    for line in lines:
        assert len(line) <= 80
        assert line.endswith("."), line
        assert not line.endswith("..."), line


def test_list_of_commands_imports_none() -> None:
    code = (
        "import sys; from pyiommufd.cli.group import COMMANDS, cli; cli(['--help'], standalone_mode=False)\n"
        "assert not {f'pyiommufd.cli.{name}' for name in COMMANDS} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "command"),
    [("help", "--help"), ("version", "--version"), ("help show", "show --help"), ("help x", "--help")],
)
def test_options_taken_for_commands(words: str, command: str) -> None:
    result = CliRunner().invoke(cli, words.split(), prog_name="pyiommufd")
    assert result.exit_code == 2
    assert result.stderr.endswith(f"No such command '{words.split()[0]}'; try pyiommufd {command}\n")
    assert CliRunner().invoke(cli, command.split()).exit_code == 0


@pytest.mark.parametrize("module", ["pyiommufd", "pyiommufd.cli"])
def test_version_is_that_of_the_package(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pyiommufd, version {pyiommufd.__version__}\n"


def test_without_click(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError(\"No module named 'click'\", name='click')\n")
    result = subprocess.run(
        [sys.executable, "-m", "pyiommufd", "--help"],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 3
    assert "pip install 'pyiommufd[cli]'" in result.stderr
