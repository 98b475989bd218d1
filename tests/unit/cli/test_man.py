"""The manual page: whole, and nothing that troff stumbles over."""

from __future__ import annotations

import re
import shutil
import subprocess

import click
import pytest
from click.testing import CliRunner

from pyiommufd.cli.group import COMMANDS, cli
from pyiommufd.cli.man import page
from pyiommufd.cli.output import ReadingCommand


def test_every_command_option_and_key_is_there() -> None:
    text = page().replace("\\-", "-")
    with click.Context(cli) as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            assert re.search(rf"^\.SS {name}\b", text, re.MULTILINE), name
            for param in command.params:
                if isinstance(param, click.Option):
                    assert all(option in text for option in param.opts), (name, param.opts)
            if isinstance(command, ReadingCommand):
                for key, meaning in command.json_keys.items():
                    assert f".B {key}\n{meaning}" in text, (name, key)


def test_lines_are_macros_or_text() -> None:
    for line in page().splitlines():
        assert not line.startswith("'")
        if line.startswith("."):
            assert re.match(r"\.(TH|SH|SS|PP|TP|B|nf|fi)( |$)", line), line
        assert "\b" not in line


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not here")
def test_groff_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-Kutf8"], input=page(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "pyiommufd" in done.stdout


def test_command_prints_it() -> None:
    result = CliRunner().invoke(cli, ["man"])
    assert (result.exit_code, result.stdout) == (0, page() + "\n")
