"""What a shell is told that a word can be completed to."""

from __future__ import annotations

from click.testing import CliRunner

from pyiommufd.cli.group import cli


def completions(line: str) -> list[str]:
    """The words, or that it is a file, for the last word of a command line, as zsh is told."""
    environment = {"_PYIOMMUFD_COMPLETE": "zsh_complete", "COMP_WORDS": line}
    environment["COMP_CWORD"] = str(len(line.split(" ")) - 1)
    result = CliRunner(env=environment).invoke(cli, prog_name="pyiommufd", catch_exceptions=False)
    lines = result.output.strip().replace("\\:", ":").splitlines()
    return [f"{kind} {name}" if kind != "plain" else name for kind, name in zip(lines[::3], lines[1::3], strict=True)]
