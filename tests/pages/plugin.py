"""Runs the blocks of pages as tests, one each, in order, on the machine that pytest is started on.

    python -m pytest -p tests.pages.plugin --machine NAME PAGE…

NAME is that of this machine on the pages: blocks for another one are left out.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil

from tests.pages.blocks import HERE, ROOT, Block, blocks, commands, matches
from tests.patience import patience

_NOT_COPIED = (".git", ".venv", ".scratch", "build", "dist", "*.egg-info", ".*_cache", "_build")


class Shell:
    """A reader's shell: each command goes on in the folder, the environment and with the status that the last one left.

    Attributes:
        folder: The working folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._environment = ours | {"COLUMNS": "100", "LC_ALL": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        # Packages are looked up, and not installed.
        self._environment |= {"APT_CONFIG": str(Path(__file__).with_name("apt.conf")), "PIP_ROOT_USER_ACTION": "ignore"}
        self._status = 0

    def run(self, command: str) -> tuple[str, int]:
        """Run a command; what it prints, to either output, and its status."""
        with tempfile.TemporaryDirectory() as folder:
            left = Path(folder) / "environment"
            script = f"trap 'env -0 >{left}' EXIT\nset -o pipefail\n"
            # After one that has failed comes `echo $?`.
            script += f"(exit {self._status})\n" if self._status else "set -e\n"
            done = subprocess.run(
                ["bash", "-c", script + command],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=patience(900),
                check=False,
            )
            pairs = [entry.partition("=") for entry in left.read_text().split("\0") if entry]
        self._environment = {name: value for name, _, value in pairs}
        self.folder = Path(self._environment["PWD"])
        self._status = done.returncode
        return done.stdout, done.returncode


class Reader:
    """Someone who reads a page and does what it says."""

    def __init__(self, folder: Path) -> None:
        self._shell = Shell(folder)
        self._printed = ""

    def __call__(self, example: Example) -> None:
        """Do what the next block says."""
        block: Block = example.parsed
        if block.file is not None:
            (self._shell.folder / block.file).write_text(block.text)
        elif block.language == "python":
            self._run_python(example)
        elif block.language == "sh":
            self._printed, status = self._shell.run(block.text)
            assert status == 0, f"status {status}:\n{self._printed}"
        elif block.language == "console":
            self._run_console(block)
        else:
            _compare(self._printed, block.text)

    def _run_python(self, example: Example) -> None:
        block: Block = example.parsed
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.chdir(self._shell.folder):
            example.namespace.setdefault("__name__", "__main__")
            code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
            exec(code, example.namespace)  # noqa: S102 - this is what it is for
        self._printed = output.getvalue()

    def _run_console(self, block: Block) -> None:
        steps = list(commands(block.text))
        for number, (command, said) in enumerate(steps):
            printed, status = self._shell.run(command)
            _compare(printed, said, command)
            asked = steps[number + 1 : number + 2] == [("echo $?", f"{status}\n")]
            assert status == 0 or asked, f"`{command}` ends with status {status}, and no `$ echo $?` says so"


def _compare(printed: str, said: str, command: str = "") -> None:
    if not matches(printed, said):
        differences = difflib.unified_diff(said.splitlines(), printed.splitlines(), "the page", "printed", lineterm="")
        pytest.fail(f"{command}\n" + "\n".join(differences), pytrace=False)


class Pages:
    """Collects the blocks for one machine."""

    def __init__(self, machine: str, folder: Path) -> None:
        self._machine = machine
        self._folder = folder
        self.pytest_collect_file = Sybil([self._parse], patterns=["*.md"], path=str(ROOT)).pytest()

    def _parse(self, document: Document) -> Iterable[Region]:
        reader = Reader(self._folder)
        for block in blocks(Path(document.path), document.text):
            if block.machine == self._machine and block.not_run is None:
                yield Region(block.start, block.end, block, reader)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--machine", help="the name on the pages of the machine that this is")


def pytest_configure(config: pytest.Config) -> None:
    machine = config.getoption("--machine")
    folder = ROOT
    if machine == HERE:
        # What a page says is done in a checkout: not in the one that is being tested.
        parent = tempfile.TemporaryDirectory()
        config.add_cleanup(parent.cleanup)
        folder = Path(parent.name) / "pyiommufd"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    config.pluginmanager.register(Pages(machine, folder))
