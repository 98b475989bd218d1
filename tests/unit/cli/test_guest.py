"""`pyiommufd guest` as far as it goes without a guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyiommufd.cli.group import COMMANDS, cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no COMMAND"),
        (["--build-kernel", "true"], "true is not a version; put -- before COMMAND"),
        (["--build-kernel", "6.12", "--kernel", "x"], "exclude each other"),
        (["--iommu", "smmu", "--", "true"], "intel-first-stage"),
        (["--cpus", "0", "--", "true"], "--cpus"),
        (["--timeout", "0", "--", "true"], "--timeout"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["guest", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_options_after_the_command_are_the_commands() -> None:
    result = CliRunner().invoke(cli, ["guest", "--kernel", "/nowhere", "--", "ls", "--kernel", "--help"])
    assert result.exit_code == 125
    assert "--kernel: there is no kernel image /nowhere" in result.output


def test_missing_folder_to_mount() -> None:
    assert CliRunner().invoke(cli, ["guest", "--mount", "/nowhere", "--", "true"]).exit_code == 2


def test_every_command_can_be_imported() -> None:
    with click.Context(cli) as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            assert command.get_short_help_str()
        assert cli.get_command(context, "no-such") is None
    assert "guest" in CliRunner().invoke(cli, ["--help"]).output


def test_without_click(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError(\"No module named 'click'\", name='click')\n")
    result = subprocess.run(
        [sys.executable, "-c", "from pyiommufd.cli.__main__ import main; main()"],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 3
    assert "pip install 'pyiommufd[cli]'" in result.stderr
