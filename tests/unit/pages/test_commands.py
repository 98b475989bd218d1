"""Commands of ours that pages name within a sentence, and that help texts name: there are such commands and options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pyiommufd.cli.group import COMMANDS, cli
from tests.pages.blocks import pages


def options(command: click.Command) -> set[str]:
    with click.Context(command) as context:
        return {option for param in command.get_params(context) for option in (*param.opts, *param.secondary_opts)}


def unknown(words: list[str]) -> list[str]:
    """What of a command line, after `pyiommufd`, there is not."""
    words = words[: words.index("--")] if "--" in words else words
    if not words or words[0].startswith("-"):
        return [word for word in words if word.startswith("-") and word not in options(cli)]
    command = cli.get_command(click.Context(cli), words[0]) if words[0] in COMMANDS else None
    if command is None:
        return words[:1]
    parts = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    known = {option for part in parts for option in options(part)}
    return [word for word in words[1:] if word.startswith("-") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_in_sentences(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"`pyiommufd ([^`]+)`", text):
        words = shlex.split(line.split("|")[0].rstrip("…"))
        if words[0] != "COMMAND":
            assert unknown(words) == [], line


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_commands_in_help(name: str | None) -> None:
    with click.Context(cli, info_name="pyiommufd") as context:
        command = cli if name is None else cli.get_command(context, name)
        assert command is not None
        with click.Context(command, info_name=name or "pyiommufd", parent=context if name else None) as own:
            text = " ".join(command.get_help(own).split())
    for word in re.findall(r"\bpyiommufd (--?[a-z-]+|[a-z]+)", text):
        assert unknown([word]) == []


def test_what_there_is_not() -> None:
    assert unknown(["lsit"]) == ["lsit"]
    assert unknown(["claim", "--presist", "eth1"]) == ["--presist"]
    assert unknown(["guest", "--device", "edu", "--", "python", "--version"]) == []
    assert unknown(["--version"]) == []
