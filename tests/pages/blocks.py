"""The fenced blocks of the project's pages, and how a test runs each.

What a block is for is told by its language, and by invisible comments:

    python                      run in order; the blocks of a page share one namespace, as at a prompt
    sh                          run by bash; each command has to succeed
    console                     lines that begin with `$ ` are run by bash, and print what follows them; one that fails
                                is followed by `$ echo $?`
    text                        what the block before it printed
    {name}                      a directive of Sphinx, which checks it
    <!-- file: NAME -->         the block after it is saved under this name, for commands further down
    <!-- machine: NAME -->      from here on blocks are run on that machine of `tests.pages.machines`
    <!-- not run: REASON -->    the block after it is not run

A `…` in what is printed stands for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sybil import Document
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[2]

HERE = "here"
"""The machine that the tests are started on."""

_COMMENT = re.compile(
    r"^[ \t]*<!-- (?P<word>file|machine|not run): (?P<value>.*?) -->[ \t]*$\s*", re.MULTILINE | re.DOTALL
)
_RUN = ("python", "sh", "console", "text")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its file.
        line: The line of its fence, from 1.
        start: Where its fence begins in the page, in characters.
        end: Where it ends.
        language: What it is, as its fence says.
        text: What is in it.
        machine: Where it is run.
        file: The name that it is saved under, or None.
        not_run: Why it is not run, or None.
    """

    page: Path
    line: int
    start: int
    end: int
    language: str
    text: str
    machine: str
    file: str | None = None
    not_run: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether a test knows what to do with it."""
        return self.file is not None or self.not_run is not None or self.language in _RUN

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """All pages of the project."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, text: str | None = None) -> Iterator[Block]:
    """The blocks of a page, in order, but for Sphinx's directives.

    Args:
        page: Its file.
        text: What is in it; None: read it.

    Raises:
        ValueError: A comment is not directly before a block.
    """
    text = page.read_text() if text is None else text
    regions = sorted(FencedCodeBlockLexer(".*")(Document(text, str(page))), key=lambda region: region.start)
    comments = [
        comment
        for comment in _COMMENT.finditer(text)
        if not any(region.start < comment.start() < region.end for region in regions)
    ]
    machine = HERE
    for region in regions:
        before = {}
        for comment in comments:
            if comment["word"] == "machine" and comment.start() < region.start:
                machine = comment["value"]
            if comment.end() == region.start:
                before[comment["word"]] = " ".join(comment["value"].split())
        if not region.lexemes["language"].startswith("{"):
            yield Block(
                page,
                text.count("\n", 0, region.start) + 1,
                region.start,
                region.end,
                region.lexemes["language"],
                region.lexemes["source"],
                machine,
                before.get("file"),
                before.get("not run"),
            )
    starts = {region.start for region in regions}
    for comment in comments:
        if comment["word"] != "machine" and comment.end() not in starts:
            raise ValueError(f"{page}: {comment.group().strip()} is not directly before a block")


def machines(page: Path) -> set[str]:
    """The machines that the blocks of a page are run on."""
    return {block.machine for block in blocks(page) if block.not_run is None}


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console, each with what it prints.

    Raises:
        ValueError: The block does not begin with a command.
    """
    command, printed = None, ""
    for line in text.splitlines(True):
        if line.startswith("$ "):
            if command is not None:
                yield command, printed
            command, printed = line[2:].rstrip("\n"), ""
        elif command is None:
            raise ValueError("a console begins with a command, after `$ `")
        elif line.startswith("> "):
            command += "\n" + line[2:].rstrip("\n")
        else:
            printed += line
    if command is not None:
        yield command, printed


def matches(printed: str, said: str) -> bool:
    """Whether a program has printed what a page says."""
    pattern = ".*?".join(re.escape(part) for part in "\n".join(line.rstrip() for line in said.splitlines()).split("…"))
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.splitlines()), re.DOTALL) is not None
