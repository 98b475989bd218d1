"""Completion of command lines by bash, zsh and fish, as click does it, mended where words have a colon or an ``=``.

bash ends a word at each of both, and replaces what is behind the last (COMP_WORDBREAKS); zsh and fish replace the whole
word, of which click completes what is behind the ``=``.
"""

from __future__ import annotations

import glob
import os
import shlex
from typing import TYPE_CHECKING

from click import ClickException
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from pyiommufd.errors import IOMMUFDError

# COMP_WORDS is the line up to the cursor, whose words we find ourselves; COMP_CWORD is what bash will replace.
_BASH = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value"); [[ $value == */ ]] && compopt -o nospace ;;
        esac
    done <<< "$(COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_CWORD="$2" %(complete_var)s=bash_complete "$1" 2>/dev/null)"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


if TYPE_CHECKING:
    _Base = ShellComplete
else:
    _Base = object


def _is_plain(word: str) -> bool:
    """Whether a shell takes it as it stands."""
    return shlex.quote(word) == word


def _files(before: str, start: str, kinds: set[str]) -> list[CompletionItem[str]]:
    """The files, or only folders, whose paths begin so.

    Args:
        before: What is before the path in the word.
        start: The path as far as it was typed.
        kinds: What click would have the shell list: ``file``, ``dir``.
    """
    items = []
    for path in sorted(glob.glob(f"{glob.escape(start)}*")):  # noqa: PTH207 - as it was typed
        folder = os.path.isdir(path)  # noqa: PTH112
        if "file" in kinds or ("dir" in kinds and folder):
            items.append(CompletionItem(f"{before}{path}{'/' if folder else ''}"))
    return items


class _WholeWords(_Base):
    """Completes a word as a whole: with the option and the ``=`` before its value.

    bash puts what it is given on the line as it is: a name with a character that a shell does not take literally is
    not offered, as whoever names an interface could have a command run.
    """

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        try:
            items = super().get_completions(args, incomplete)
        except (ClickException, IOMMUFDError, OSError):
            return []  # there is no place where it could be told
        items = [item for item in items if item.type != "plain" or _is_plain(item.value)]
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("-"):
            for item in items:
                if item.type == "plain":
                    item.value = f"{option}={item.value}"
        return items


@add_completion_class
class _Bash(_WholeWords, BashComplete):
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        # The mark shows where the line ends: within its last word, in quotes or not, or behind that.
        *args, last = split_arg_string(f"{os.environ['COMP_WORDS']}|")
        return args[1:], last[:-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        replaced = "".join(split_arg_string(os.environ["COMP_CWORD"]))
        if replaced in (":", "="):
            replaced = ""  # as the completion of sudo says it, right behind one
        kept = incomplete.removesuffix(replaced)
        found = super().get_completions(args, incomplete)
        if kept.endswith(":"):
            # Of a path too bash would see only what is behind the colon.
            before = incomplete[: incomplete.find("=") + 1] if incomplete.startswith("-") else ""
            files = _files(before, incomplete.removeprefix(before), {item.type for item in found})
            found = [item for item in [*found, *files] if item.type == "plain" and _is_plain(item.value)]
        items = []
        for item in found:
            if item.type == "plain":
                if item.value[: len(kept)].lower() != kept.lower():
                    continue
                item.value = item.value[len(kept) :]
            items.append(item)
        return items


class _WithFiles(_WholeWords):
    """Lists files behind an ``=`` itself, where the shell would look for the whole word."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        option, equals, start = incomplete.partition("=")
        items = super().get_completions(args, incomplete)
        if not equals or not option.startswith("-"):
            return items
        items += _files(f"{option}=", start, {item.type for item in items})
        return [item for item in items if item.type == "plain"]


@add_completion_class
class _Zsh(_WithFiles, ZshComplete):
    pass


@add_completion_class
class _Fish(_WithFiles, FishComplete):
    pass
