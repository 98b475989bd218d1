"""`pyiommufd guest` as far as it goes without a guest."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pyiommufd.cli.group import cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no COMMAND, and no terminal for a shell"),
        (["--shell"], "no terminal for a shell"),
        (["--shell", "--", "true"], "--shell and COMMAND exclude each other"),
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
