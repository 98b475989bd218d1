"""What the tests of handing over share: a started ``pyiommufd run``, and who holds devices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import recover
from pyiommufd.host.claims import journal
from tests.guest.forked import start_cli
from tests.guest.types import DriverState, ReadDriverState
from tests.patience import patience

STANDIN = Path(__file__).with_name("standin.py")
RUN = [sys.executable, "-m", "pyiommufd.cli", "run"]


def named(folder: Path, name: str) -> Path:
    """The stand-in, as an executable of another name."""
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{STANDIN.read_text()}")
    program.chmod(0o755)
    return program


class Started:
    """A ``pyiommufd run`` whose monitor says what it does."""

    def __init__(self, *arguments: str, program: str | Path = STANDIN) -> None:
        own = arguments[: arguments.index("--")]
        theirs = arguments[arguments.index("--") + 1 :]
        start = [str(program)] if os.access(program, os.X_OK) else [sys.executable, str(program)]
        self.process = start_cli(
            "run",
            *own,
            "--",
            *start,
            *theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines: list[str] = []

    def until(self, word: str) -> list[str]:
        """Read the monitor's lines until one begins with a word; the rest of that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.split()[0] == word:
                return line.split()[1:]
        raise AssertionError(self.lines + self.end())

    def end(self) -> list[str]:
        """Wait for its end; what it has said itself."""
        output, errors = self.process.communicate(timeout=patience())
        self.lines += output.splitlines()
        return errors.splitlines()


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Starts ``pyiommufd run``; whatever a test leaves running is killed."""
    started: list[Started] = []

    def start(*arguments: str, program: str | Path = STANDIN) -> Started:
        started.append(Started(*arguments, program=program))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def holders_of_anything() -> list[str]:
    """Every process that holds a vfio device or an iommufd, with its fd."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(fd.readlink())
        except OSError:
            continue  # closed since
        if target.startswith("/dev/vfio/") or target == "/dev/iommu":
            found.append(f"{fd}: {target}")
    return found


@pytest.fixture(autouse=True)
def as_before(driver_state: ReadDriverState) -> Iterator[DriverState]:
    """Every test leaves drivers, overrides and the record as they were, and nothing open."""
    recover()
    before = driver_state()
    yield before
    assert driver_state() == before
    assert journal.records() == []
    assert holders_of_anything() == []


@pytest.fixture
def python_for_all() -> Iterator[None]:
    """Users other than root may run this Python, which may be below root's own folder."""
    closed = [folder for folder in Path(sys.executable).resolve().parents if not folder.stat().st_mode & 0o001]
    modes = {folder: folder.stat().st_mode for folder in closed}
    for folder, mode in modes.items():
        folder.chmod(mode | 0o001)
    yield
    for folder, mode in modes.items():
        folder.chmod(mode)
