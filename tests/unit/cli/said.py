"""What a text says to do at a shell's prompt: whether it is no Python, and names commands and options that exist."""

from __future__ import annotations

import re

import click

from pyiommufd.cli.group import COMMANDS, cli

_PYTHON = re.compile(
    r"[a-z_]\([\w'\"\[)]"  # a call
    r"|\b(?:IOAS|IOMMUFD|HWPT|Device|Region|DMABuffer|Kind)\.\w|\bDMABuffer\b"
    r"|\b(?:force|leave|iova|writeable|pasid|token|user|kind|vf_token|memlock|driver)=(?![\w.]*:)"
)
_COMMAND = re.compile(r"\bpyiommufd (?P<name>[a-z][a-z-]*)(?P<rest>[^;,()]*)")


def python_in(text: str) -> str:
    """What of a text is Python; empty: nothing."""
    found = _PYTHON.search(text)
    return found[0] if found else ""


def wrong_commands(text: str) -> list[str]:
    """The commands of ours, and the options of these, that a text names and that do not exist."""
    wrong = []
    for match in _COMMAND.finditer(text):
        name = match["name"]
        if name not in COMMANDS:
            wrong.append(name)
            continue
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        known = {option for part in parts for parameter in part.params for option in parameter.opts} | {"--help"}
        own = match["rest"].partition(" -- ")[0]
        wrong += [f"{name} {option}" for option in re.findall(r"(?<!\S)--[a-z][\w-]*", own) if option not in known]
    return wrong
