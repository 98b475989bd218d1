"""All terminal output, and helpers shared by the reading commands: tables, JSON with documented keys.

All text goes through `echo`, which escapes unprintable characters: paths, interface names and command names come
from untrusted sources, and terminals interpret control characters.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO, TypeVar, cast

import click

from pyiommufd.cli.status import MISSING, status_of
from pyiommufd.errors import ClaimError, DeviceNotFoundError, IOMMUFDError
from pyiommufd.host.namespaces import visibility_note
from pyiommufd.printable import printable

_AFTER = 1.0
_USUAL = 80
"""The columns of a terminal that does not say how many it has."""
_LEAST = 16
"""The fewest columns that a description is cut to."""
_STDOUT = "the standard output"
_CLAIMED_NAMES = "what is claimed has no interface and no disk, and goes by its address: pyiommufd claims lists it"

Function = TypeVar("Function", bound=Callable[..., Any])

COLOURS = {
    "ok": "green",
    "claimable": "green",
    "vfio": "cyan",
    "vfio-noiommu": "red",
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


class EscapedText(str):
    """Text that is escaped already; unprintable characters left in it are ours, such as colour sequences."""

    __slots__ = ()


def echo(*words: object, sep: str = "", err: bool = False) -> None:
    """Print and flush one or more lines, with unprintable characters other than newlines escaped.

    Args:
        words: What is printed; `EscapedText` as it is.
        sep: What stands between two of them.
        err: Print to standard error. A write error there is ignored, since it cannot be reported.

    Raises:
        OSError: The standard output cannot be written to; it is not tried again.
    """
    text = sep.join(word if isinstance(word, EscapedText) else printable(str(word), keep="\n") for word in words)
    try:
        click.echo(text, err=err)
    except OSError:
        if not err:
            raise
        _redirect_to_null(sys.stderr)


def said(error: BaseException) -> str:
    """The message of an error; its fixes are commands. Of a name that is unknown it says what a claim makes of it."""
    if isinstance(error, DeviceNotFoundError) and error.is_unknown and _is_anything_claimed():
        return f"{error.for_command()}\n{_CLAIMED_NAMES}"
    return error.for_command() if isinstance(error, IOMMUFDError) else str(error)


def _is_anything_claimed() -> bool:
    from pyiommufd.host.claims import journal  # few commands need it otherwise

    with contextlib.suppress(ClaimError):
        return bool(journal.readable_records())
    return False


def style(word: object, **how: Any) -> EscapedText:
    """A word in its colour, or as `click.style` is told; off a terminal `click.echo` takes the colour away."""
    text = printable(str(word))
    how = how or {"fg": COLOURS.get(text)}
    return EscapedText(click.style(text, **how) if any(how.values()) else text)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """One JSON value, indented; with ``indent=None`` on one line."""
    import json  # here, as most print a table

    lines = json.dumps(value, indent=indent, ensure_ascii=False).split("\n")
    echo(*map(_escaped, lines), sep="\n")


def _escaped(line: str) -> EscapedText:
    # With JSON's escapes, so that a parser gets the exact text; json.dumps leaves U+2028, for one, unescaped.
    if line.isprintable():
        return EscapedText(line)
    import json

    return EscapedText("".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table: columns as wide as what is in them. None is shown as ``-``.

    On a terminal that is too narrow the last column is cut to fit, and a long first cell, such as a UUID, stands on a
    line of its own.
    """
    table = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
    if sum(widths[:-1]) + 2 * len(widths[:-1]) + min(widths[-1], _LEAST) > _columns():
        widths[0] = max(len(text) for text in (head[0], *(row[0] for row in table)) if len(text) <= _LEAST)
    lines = [style("  ".join(map(str.ljust, head, widths)).rstrip(), bold=True)]
    before = sum(widths[:-1]) + 2 * len(widths[:-1])
    for row in table:
        row[-1] = _cut(row[-1], _columns() - before)
        if len(row[0]) > widths[0]:
            lines.append(EscapedText(row[0]))
            row[0] = ""
        padded = zip(row, map(str.ljust, row, widths), strict=True)
        cells = (style(cell) + text[len(cell) :] if cell in COLOURS else text for cell, text in padded)
        lines.append(EscapedText("  ".join(cells).rstrip()))
    echo(*lines, sep="\n")


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one below the other; what is None, or an empty text or tuple, is left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", ())]
    width = max((len(name) for name, _ in shown), default=0) + 2
    for name, value in shown:
        label = name
        for line in value if isinstance(value, tuple) else [value]:
            text = fitted(str(line), " " * width, " " * (width + 2))[width:]
            echo(style(label.ljust(width), bold=True), style(text) if text in COLOURS else text)
            label = ""


def print_indented(label: str, text: str, indent: int) -> None:
    """A labelled text, on a terminal in lines that fit it; elsewhere in one, which can be searched for."""
    echo(fitted(text, f"{'':<{indent}}{label}: ", " " * (indent + len(label) + 2)))


def fitted(text: str, first: str = "", later: str = "  ") -> str:
    """A text for a terminal, in lines that fit it; for another output in one line.

    Args:
        text: The text; escaped here.
        first: What stands before the first line.
        later: What stands before the others.
    """
    text = printable(text)
    if not _is_terminal():
        return first + text
    width = max(_columns(), len(later) + 40)
    # Names and paths stay whole, to be copied.
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False, break_long_words=False
    )


def print_words(words: Iterable[EscapedText], description: str, first: str, later: str) -> None:
    """A line of words, two blanks apart; on a terminal as many lines as it takes, with the description cut to fit.

    Args:
        words: The words.
        description: What stands behind them, or nothing; escaped here.
        first: What stands before the first line.
        later: What stands before the others.
    """
    line, used, gap = first, len(first), 0
    for word in (*words, *filter(None, [printable(description)])):
        length = len(click.unstyle(word))
        least = length if isinstance(word, EscapedText) else min(length, _LEAST)
        if gap and used + gap + least > _columns():
            echo(EscapedText(line))
            line, used, gap = later, len(later), 0
        text = word if isinstance(word, EscapedText) else _cut(word, _columns() - used - gap)
        line, used, gap = f"{line}{' ' * gap}{text}", used + gap + length, 2
    echo(EscapedText(line))


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _columns() -> int:
    """How many columns a line may take: without a terminal any number."""
    if not _is_terminal():
        return sys.maxsize
    # As shutil.get_terminal_size, which asks sys.__stdout__: its file is sys.stdout's by now (`streams`).
    with contextlib.suppress(KeyError, ValueError):
        return int(os.environ["COLUMNS"])
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or _USUAL
    return _USUAL


def _cut(text: str, width: int) -> str:
    width = max(width, _LEAST)
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Set up what this process writes to: a command runs within this.

    It ends with exit status 3 where the standard output cannot be written to, with a line that says so.
    """
    # Replace closed standard streams: their fd numbers would be reused by the next files that are opened.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - until the end
    # What the terminal's encoding does not have is shown as its number, too.
    encoding = sys.stdout.encoding
    sys.stdout = _Output(cast(io.TextIOWrapper, sys.stdout).detach(), encoding, "backslashreplace", line_buffering=True)
    cast(io.TextIOWrapper, sys.stderr).reconfigure(errors="backslashreplace")
    sys.excepthook = _print_traceback
    logging.getLogger().addHandler(_EchoHandler(logging.WARNING))
    try:
        yield
    except IOMMUFDError as error:
        echo(f"pyiommufd: {said(error)}", err=True)
        sys.exit(status_of(error))
    except OSError as error:
        if error.filename != _STDOUT:
            raise
        echo(f"pyiommufd: {_STDOUT} cannot be written to: {error.strerror}", err=True)
        sys.exit(MISSING)


class _Output(io.TextIOWrapper):
    """Standard output. A write error is reported once: the interpreter would flush, and fail, again at exit."""

    def write(self, text: str, /) -> int:
        with self._name_stream_in_errors():
            return super().write(text)

    def flush(self) -> None:
        with self._name_stream_in_errors():
            super().flush()

    @contextlib.contextmanager
    def _name_stream_in_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _redirect_to_null(self)
            raise OSError(error.errno, error.strerror, _STDOUT) from error


def _redirect_to_null(stream: TextIO) -> None:
    """Redirect all further output of a stream to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _EchoHandler(logging.Handler):
    """Prints log messages on standard error, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        error = record.exc_info[1] if record.exc_info else None
        echo(record.getMessage() if error is None else f"{record.getMessage()}: {said(error)}", err=True)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    echo("".join(traceback.format_exception(kind, error, trace)).rstrip(), err=True)


def print_visibility_note() -> None:
    """Print on standard error what this process, being in a container, cannot see of the machine."""
    if text := visibility_note():
        echo(f"pyiommufd: {text}", err=True)


def print_iommu_note() -> None:
    """Print on standard error that this machine has no IOMMU, where it has none."""
    from pyiommufd.host.checks.lacks import no_iommu  # here: not every command looks at devices

    if (lack := no_iommu()) is not None:
        echo(f"pyiommufd: {lack}", err=True)


def print_none(what: str) -> None:
    """Print on standard error what there is none of, where nothing else is printed."""
    echo(f"none: {what}", err=True)


@contextlib.contextmanager
def show_progress(activity: str) -> Iterator[None]:
    """On a terminal, print what is being done once it has taken a second."""
    if not sys.stderr.isatty():
        yield
        return
    shown = threading.Event()

    def show() -> None:
        shown.set()
        sys.stderr.write(f"\r{printable(activity)} …")
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
