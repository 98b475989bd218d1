"""Runs of pytest and of checkers, and what came of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUEST_SECONDS = 2700
AT_A_TIME = (os.cpu_count() or 1) + 1
"""Guests that run at the same time: they wait for devices now and then."""
_FAILURE_WIDTH = 400
_NO_TESTS = 5  # pytest's exit status where the options chose none


@dataclass(frozen=True)
class Case:
    """One test of a run.

    Attributes:
        name: The file without its ending, and the function, such as ``test_dma::test_replace``.
        outcome: ``passed``, ``failed`` or ``skipped``.
        reason: Why it was skipped, or what it failed by.
    """

    name: str
    outcome: str
    reason: str = ""


def read_report(report: Path) -> list[Case] | None:
    """The tests in a junit report; None where there is none that can be read."""
    try:
        elements = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - our own pytest wrote it
    except (OSError, ElementTree.ParseError):
        return None
    cases: dict[str, Case] = {}
    for element in elements:
        name = f"{element.get('classname', '').rpartition('.')[2]}::{element.get('name')}"
        skip = element.find("skipped")
        failure = next((found for tag in ("failure", "error") if (found := element.find(tag)) is not None), None)
        if failure is not None:
            case = Case(name, "failed", failure.get("message") or "no message")
        elif skip is not None:
            case = Case(name, "skipped", skip.get("message") or "no reason given")
        else:
            case = Case(name, "passed")
        # A test that fails and whose teardown fails as well is reported twice.
        if name not in cases or case.outcome == "failed":
            cases[name] = case
    return list(cases.values())


@dataclass
class Run:
    """One run of pytest, or of a checker as a run of one test."""

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """How many failed."""
        return len(self.failures)

    def count(self, cases: list[Case] | None, status: int) -> None:
        """Count what a report says; a run that ended without one, or badly, is a failure of its own."""
        if cases is None:
            self.failures.append(f"it ended with status {status} and without a report")
        for case in cases or ():
            if case.outcome == "skipped":
                self.skipped[case.reason] += 1
            elif case.outcome == "failed":
                self.failures.append(f"{case.name}: {case.reason}")
            else:
                self.passed += 1
        if status not in (0, _NO_TESTS) and not self.failed:
            self.failures.append(f"it ended with status {status}")

    def show(self) -> None:
        """Print the run's line of the summary."""
        skipped = self.skipped.total()
        figures = f"{self.passed:5} passed {self.failed:3} failed {skipped:3} skipped  {self.seconds:6.1f} s"
        print(f"{self.name:24} {figures}")
        for reason, count in self.skipped.most_common():
            print(f"{'':24} {count:5} skipped: {reason}")

    def show_failures(self) -> None:
        """Print what failed, in a few lines each: whoever reads the end of a log is to see what to look for."""
        for failure in self.failures:
            print(f"FAILED, {self.name}: {textwrap.shorten(failure, _FAILURE_WIDTH)}")


def title(text: str) -> None:
    """Say what comes now."""
    print(f"\n==== {text}", flush=True)


def check(name: str, command: list[str]) -> Run:
    """Run a checker."""
    title(name)
    start = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
    failures = [f"it ended with status {status}"] if status else []
    return Run(name, passed=int(not status), failures=failures, seconds=time.monotonic() - start)


def here(name: str, arguments: list[str], environment: Mapping[str, str] | None = None, *, aside: bool = False) -> Run:
    """Run pytest on this machine.

    Args:
        name: What to call it.
        arguments: Of pytest.
        environment: In place of this process'.
        aside: Others run at the same time: what it prints is kept together, until it has ended.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *arguments]
        status = run_command(name, command, environment, aside=aside)
        return _counted(name, report, status, start)


def run_command(
    name: str, command: list[str], environment: Mapping[str, str] | None = None, *, aside: bool = False
) -> int:
    """Run a command under a title; the arguments are those of `here`. Returns its status."""
    if not aside:
        title(name)
        return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=environment, check=False).returncode
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
        check=False,
    )
    title(f"{name}\n{done.stdout}")
    return done.returncode


def _counted(name: str, report: Path, status: int, start: float) -> Run:
    run = Run(name)
    run.count(read_report(report), status)
    run.seconds = time.monotonic() - start
    return run


def compile_everything() -> None:
    """Compile the package and the tests, as Python and as pytest does it, here and not in each guest anew."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for command in (
        ["compileall", "-q", "pyiommufd", "tests"],
        ["pytest", "--collect-only", "-qq", "tests/guest"],
        ["pytest", "--collect-only", "-qq", "tests/conformance"],
    ):
        # What is wrong with a test is said where it runs.
        subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            check=False,
        )


def guest_command(folder: str, options: list[str], arguments: list[str], seconds: int = GUEST_SECONDS) -> list[str]:
    """The command that runs pytest in a guest, with its report in a folder."""
    guest = [sys.executable, "-m", "pyiommufd.cli", "guest", f"--timeout={seconds}", f"--results={folder}", *options]
    inner = ["python", "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=/results/report.xml", *arguments]
    if not any("stress" in argument for argument in arguments):
        inner += ["-p", "no:hypothesispytest"]  # slow to import, and the other tests make no use of it
    return [*guest, "--", *inner]


def in_guest(
    name: str,
    arguments: list[str],
    seconds: int = GUEST_SECONDS,
    *,
    aside: bool = False,
    machine: Sequence[str] = (),
) -> Run:
    """Run pytest in a guest of the default kernel and QEMU; the arguments are those of `here`.

    ``machine`` is more for the guest's command line, such as its devices.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        status = run_command(name, guest_command(folder, [*machine], arguments, seconds), aside=aside)
        return _counted(name, Path(folder) / "report.xml", status, start)
