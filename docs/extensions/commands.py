"""The page of the commands, from their own help: what ``--help`` prints, and ``pyiommufd man``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from pyiommufd.cli.group import cli
from pyiommufd.cli.man import COMPLETION, ENVIRONMENT, STATUS, STATUS_OF_OTHERS
from pyiommufd.cli.output import ReadingCommand

_PROGRAM = "pyiommufd"


def target(text: str) -> str | None:
    """The section of a command line such as ``pyiommufd claim DEVICE``, by its id on the page."""
    words = text.split()
    if words[:1] != [_PROGRAM] or words[1:2] == []:
        return None
    return f"{_PROGRAM}-{words[1]}" if words[1] in cli.list_commands(click.Context(cli)) else None


class Commands(Directive):
    """``.. commands::``: a section for each command, and what holds for all of them."""

    def run(self) -> list[nodes.Node]:
        """The sections, at the end of a page."""
        found: list[nodes.Node] = []
        with click.Context(cli, info_name=_PROGRAM) as context:
            for name in cli.list_commands(context):
                command = cli.get_command(context, name)
                if command is not None and not command.hidden:
                    found.append(self._section(f"{_PROGRAM} {name}", _command(context, name, command)))
        exits = [_definitions(STATUS), _paragraph(STATUS_OF_OTHERS)]
        return [
            *found,
            self._section("Exit status", exits),
            self._section("Environment", [_definitions(ENVIRONMENT)]),
            self._section("Completion", [_paragraph(COMPLETION)]),
        ]

    def _section(self, title: str, content: Iterable[nodes.Node]) -> nodes.section:
        section = nodes.section("", nodes.title("", title), *content, ids=[nodes.make_id(title)])
        section["names"] = [nodes.fully_normalize_name(title)]
        self.state.document.note_explicit_target(section, section)
        return section


def _command(parent: click.Context, name: str, command: click.Command) -> Iterator[nodes.Node]:
    with click.Context(command, info_name=name, parent=parent) as context:
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield nodes.literal_block(usage, usage, language="none")
        yield from _help(inspect.cleandoc(command.help or ""))
        records = [record for param in command.params if (record := param.get_help_record(context)) is not None]
        if records:
            yield nodes.rubric("", "Options")
            yield _definitions({option: text for option, text in records if text})
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                yield from _command(context, each, command.commands[each])
    if isinstance(command, ReadingCommand) and command.json_keys:
        yield nodes.rubric("", "Keys of the JSON")
        yield _table(command.json_keys)


def _help(text: str) -> Iterator[nodes.Node]:
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("\b"):  # click's mark for lines to keep
            kept = "\n".join(paragraph.splitlines()[1:])
            yield nodes.literal_block(kept, kept, language="none")
        else:
            yield _paragraph(paragraph)


def _definitions(items: Mapping[str, str]) -> nodes.definition_list:
    return nodes.definition_list(
        "",
        *(
            nodes.definition_list_item(
                "", nodes.term("", "", nodes.literal(name, name)), nodes.definition("", _paragraph(text))
            )
            for name, text in items.items()
        ),
    )


def _table(items: Mapping[str, str]) -> nodes.table:
    group = nodes.tgroup("", nodes.colspec(colwidth=1), nodes.colspec(colwidth=3), cols=2)
    group += nodes.tbody(
        "",
        *(
            nodes.row(
                "",
                nodes.entry("", nodes.paragraph("", "", nodes.literal(name, name))),
                nodes.entry("", _paragraph(text)),
            )
            for name, text in items.items()
        ),
    )
    return nodes.table("", group)


def _paragraph(text: str) -> nodes.paragraph:
    """Plain text: help has no markup but for code in backticks."""
    words = re.split(r"`([^`]+)`", " ".join(text.split()))
    pieces = [nodes.literal(word, word) if number % 2 else nodes.Text(word) for number, word in enumerate(words)]
    return nodes.paragraph("", "", *pieces)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
