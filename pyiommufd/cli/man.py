"""``pyiommufd man``: the manual page, made from the commands' own help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from pyiommufd.cli.group import cli
from pyiommufd.cli.output import ReadingCommand, echo

COMPLETION = (
    "bash, zsh and fish complete commands, options and what this machine has for them, devices by any of their names, "
    "once they have run what this prints. In ~/.bashrc: "
    'eval "$(_PYIOMMUFD_COMPLETE=bash_source pyiommufd)". In ~/.zshrc, below compinit: '
    'eval "$(_PYIOMMUFD_COMPLETE=zsh_source pyiommufd)". In ~/.config/fish/completions/pyiommufd.fish: '
    "_PYIOMMUFD_COMPLETE=fish_source pyiommufd | source."
)
ENVIRONMENT = {
    "NO_COLOR": "Set to anything: no colours. There are none off a terminal.",
    "PYIOMMUFD_KERNEL, PYIOMMUFD_QEMU": "The kernel image and the QEMU of pyiommufd guest.",
}
STATUS = {
    "0": "Done.",
    "1": "Refused, or failed.",
    "2": "Wrong usage.",
    "3": "This machine lacks something.",
}
STATUS_OF_OTHERS = "run and guest end with the status of their own command, or 125 where that could not be started."


@click.command()
def man() -> None:
    """Print the manual page; to read it: pyiommufd man | man -l - ."""
    echo(page())


def page() -> str:
    """The manual page, in troff's man macros."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    yield '.TH PYIOMMUFD 1 "" pyiommufd "User Commands"'
    yield ".SH NAME"
    summary = (cli.help or "").partition("\n")[0]
    yield _text(f"pyiommufd - {summary}")
    yield ".SH SYNOPSIS"
    yield ".B pyiommufd"
    yield _text("COMMAND [OPTIONS] [ARGUMENTS]")
    yield ".SH COMMANDS"
    with click.Context(cli, info_name="pyiommufd") as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            if command is not None and not command.hidden:
                yield from _command(context, name, command)
    yield ".SH EXIT STATUS"
    yield from _definitions(STATUS)
    yield _text(STATUS_OF_OTHERS)
    yield ".SH ENVIRONMENT"
    yield from _definitions(ENVIRONMENT)
    yield ".SH COMPLETION"
    yield _text(COMPLETION)


def _command(parent: click.Context, name: str, command: click.Command) -> Iterator[str]:
    with click.Context(command, info_name=name, parent=parent) as context:
        yield f".SS {_text(' '.join([name, *command.collect_usage_pieces(context)]))}"
        yield from _help(inspect.cleandoc(command.help or ""))
        records = [record for param in command.params if (record := param.get_help_record(context)) is not None]
        yield from _definitions({option: text for option, text in records if text})
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                yield from _command(context, f"{name} {each}", command.commands[each])
    if isinstance(command, ReadingCommand) and command.json_keys:
        yield ".PP"
        yield _text("Keys of the JSON:")
        yield from _definitions(command.json_keys)


def _help(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):  # click's mark for lines to keep
            yield ".nf"
            yield from map(_text, paragraph.splitlines()[1:])
            yield ".fi"
        else:
            yield _text(" ".join(paragraph.split()))


def _definitions(items: dict[str, str]) -> Iterator[str]:
    for name, text in items.items():
        yield ".TP"
        yield f".B {_text(name)}"
        yield _text(text)


def _text(text: str) -> str:
    """A line of text that troff takes for nothing else."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
