"""What the reading commands share: tables, JSON with documented keys, a word to those who wait."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

_AFTER = 1.0

Function = TypeVar("Function", bound=Callable[..., Any])

COLOURS = {
    "ok": "green",
    "claimable": "green",
    "vfio": "cyan",
    "warning": "yellow",
    "in-use": "yellow",
    "unseen": "yellow",
    "unbindable": "yellow",
    "missing": "red",
    "refused": "red",
}
"""The colours of words that say how something stands."""


def json_option(keys: Mapping[str, str]) -> Callable[[Function], Function]:
    """Adds ``--json`` to a command, whose keys its help lists.

    Args:
        keys: What each key says. ``a.b`` is key b of the object, or of each object of the array, in a.
    """

    def decorate(function: Function) -> Function:
        function = click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are below.")(function)
        function.__json_keys__ = dict(keys)  # type: ignore[attr-defined]
        return function

    return decorate


class ReadingCommand(click.Command):
    """A command whose help ends with the keys of its JSON."""

    @property
    def json_keys(self) -> dict[str, str]:
        """The keys of its JSON, and what each says."""
        return dict(getattr(self.callback, "__json_keys__", {}))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The keys, then what any command ends with."""
        if self.json_keys:
            with formatter.section("JSON"):
                formatter.write_dl(list(self.json_keys.items()))
        super().format_epilog(ctx, formatter)


def print_json(value: object) -> None:
    """One JSON value, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """One JSON value on one line, at once: for a stream of them."""
    click.echo(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def style(word: str) -> str:
    """A word that says how something stands, in its colour; off a terminal `click.echo` takes the colour away."""
    colour = COLOURS.get(word)
    return word if colour is None else click.style(word, fg=colour)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table: columns as wide as what is in them, but for the last. None is shown as ``-``."""
    table = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
    lines = [click.style("  ".join(map(str.ljust, head, widths)).rstrip(), bold=True)]
    for row in table:
        cells = (style(cell) + " " * (width - len(cell)) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    click.echo("\n".join(lines))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one below the other; what is None, or an empty text or tuple, is left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", ())]
    width = max((len(name) for name, _ in shown), default=0) + 2
    for name, value in shown:
        lines = list(map(str, value)) if isinstance(value, tuple) else [str(value)]
        click.echo(click.style(name.ljust(width), bold=True) + style(lines[0]))
        for line in lines[1:]:
            click.echo(" " * width + line)


def print_indented(label: str, text: str, indent: int) -> None:
    """A labelled text, on a terminal in lines that fit it; elsewhere in one, which can be searched for."""
    first, later = f"{'':<{indent}}{label}: ", " " * (indent + len(label) + 2)
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns, indent + 40)
        click.echo(textwrap.fill(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False))
    else:
        click.echo(first + text)


@contextlib.contextmanager
def waiting(for_what: str) -> Iterator[None]:
    """Say on a terminal what is being done, once it has taken a second."""
    if not sys.stderr.isatty():
        yield
        return
    shown = threading.Event()

    def show() -> None:
        shown.set()
        sys.stderr.write(f"\r{for_what} …")
        sys.stderr.flush()

    timer = threading.Timer(_AFTER, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if shown.is_set():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
