"""Runs of pytest, here or in a guest, and of checkers; and what came of them.

What fails is run once more, alone, in a fresh guest: what passes then is unsteady, and no failure of the change.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.plugin.configuration import GuestConfiguration
from tests import sweeps
from tests.guest_pytest import ENVIRONMENT, PYTEST
from tests.patience import patience
from tests.runner.reports import Case, Report, read_report

ROOT = Path(__file__).resolve().parents[2]
AT_A_TIME = (os.cpu_count() or 1) + 1
"""Runs that go on at the same time: guests wait for devices now and then."""
GUEST_SECONDS = 600
"""Limit for pytest in a guest with sampled sweeps: a run that hangs must not use up all the time there is."""

_MOST_RERUN = 6
_FAILURE_WIDTH = 400
_ORDERLY = (0, 1, 5)  # pytest's exit status: all passed, some failed, the options chose none


@dataclass(frozen=True)
class Job:
    """A run of pytest.

    Attributes:
        name: What to call it.
        tests: Files, folders or node ids.
        machine: The guest that it runs in; None: this machine.
        options: More for pytest.
        environment: More for its environment.
        folder: The working folder, which the tests are named from.
        seconds: How long it may take in a guest, all in all; grows with the machine's slowness.
        judge: What is wrong with its tests beyond what failed, such as one that did not run.
    """

    name: str
    tests: tuple[str, ...]
    machine: GuestConfiguration | None = None
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    seconds: float = GUEST_SECONDS
    judge: Callable[[list[Case]], list[str]] = lambda cases: []


@dataclass(frozen=True)
class Sweep:
    """A sweep that a run came by: how many points it has, and how many were taken."""

    name: str
    points: int
    taken: int


@dataclass
class Attempt:
    """Pytest run once.

    Attributes:
        report: What it reported.
        error: What befell it as a whole, if anything did.
        output: What it printed.
        console: What the guest's console printed.
        boot: Seconds until the guest took commands.
        command: Seconds that pytest took, from its start to its end.
        sweeps: Those in it.
    """

    report: Report = field(default_factory=Report)
    error: str = ""
    output: str = ""
    console: str = ""
    boot: float = 0.0
    command: float = 0.0
    sweeps: list[Sweep] = field(default_factory=list)

    @property
    def failed(self) -> list[Case]:
        """The tests that failed."""
        return [case for case in self.report.cases.values() if case.outcome == "failed"]


@dataclass(frozen=True)
class Unsteady:
    """A test, or a run as a whole, that failed and then passed.

    Attributes:
        run: The run's name.
        test: The node id; the run's name where it was the guest that died.
        reason: What it failed by.
        log: What was printed then: pytest's output and the guest's console.
    """

    run: str
    test: str
    reason: str
    log: str


@dataclass
class Run:
    """What came of a run of pytest, or of a checker as a run of one test.

    Attributes:
        name: What it is called.
        passed: How many tests passed, the unsteady among them.
        failures: What failed, in a line each.
        skipped: How many were skipped, by the reason.
        unsteady: What failed and then passed.
        cases: The tests.
        sweeps: The sweeps in it.
        boot: Seconds until the guest took commands; 0 where there is none.
        collection: Seconds that pytest took to start and collect.
        tests: Seconds that the tests took.
        seconds: All in all.
        remark: More to be said of it at the end.
    """

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unsteady: list[Unsteady] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    boot: float = 0.0
    collection: float = 0.0
    tests: float = 0.0
    seconds: float = 0.0
    remark: str = ""

    @property
    def failed(self) -> int:
        """How many failed."""
        return len(self.failures)

    def count(self, cases: list[Case]) -> None:
        """Count tests."""
        self.cases += cases
        for case in cases:
            if case.outcome == "skipped":
                self.skipped[case.reason] += 1
            elif case.outcome == "failed":
                self.failures.append(f"{case.name}: {case.reason}")
            else:
                self.passed += 1

    def show(self) -> None:
        """Print the run's line of the summary."""
        skipped = self.skipped.total()
        figures = f"{self.passed:5} passed {self.failed:3} failed {skipped:3} skipped"
        times = f"{self.boot:6.1f} boot {self.collection:6.1f} collection {self.tests:7.1f} tests {self.seconds:7.1f} s"
        print(f"{self.name:26} {figures}  {times}")
        for reason, count in self.skipped.most_common():
            print(f"{'':26} {count:5} skipped: {reason}")

    def show_failures(self) -> None:
        """Print what failed, in a few lines each: whoever reads the end of a log is to see what to look for."""
        for failure in self.failures:
            print(f"FAILED, {self.name}: {textwrap.shorten(failure, _FAILURE_WIDTH)}")


def title(text: str) -> None:
    """Say what comes now."""
    print(f"\n==== {text}", flush=True)


def check(name: str, command: list[str]) -> Run:
    """Run a checker."""
    start = time.monotonic()
    status, output = _command(command, os.environ)
    title(f"{name}\n{output}")
    failures = [f"it ended with status {status}"] if status else []
    return Run(name, passed=int(not status), failures=failures, seconds=time.monotonic() - start)


def run_job(job: Job, *, show: bool = True) -> Run:
    """Run a job; what fails once more.

    Args:
        job: What to run.
        show: Print what pytest printed, when it has ended.
    """
    start = time.monotonic()
    run = Run(job.name)
    first = attempt(job)
    if show:
        title(f"{job.name}\n{first.output}")
    if first.error:
        print(f"---- {job.name}: {first.error}\n{_tail(first.console)}", flush=True)
    last = first
    if first.error:
        # Whatever it was in the middle of: all of it once more.
        last = attempt(job)
        if last.error:
            run.failures.append(f"{first.error}; and again: {last.error}")
        else:
            run.unsteady.append(Unsteady(job.name, job.name, first.error, f"{first.output}\n{first.console}"))
    cases = last.report.cases
    for case in last.failed if len(last.failed) <= _MOST_RERUN else ():
        again = attempt(replace(job, tests=(case.nodeid,)))
        now = again.report.cases.get(case.nodeid)
        if now is not None and now.outcome == "passed" and not again.error:
            cases[case.nodeid] = now
            run.unsteady.append(Unsteady(job.name, case.nodeid, case.reason, f"{last.output}\n{last.console}"))
        else:
            print(f"---- {job.name}: {case.nodeid} failed again, alone\n{again.output}", flush=True)
    run.count(list(cases.values()))
    if not last.error:
        run.failures += job.judge(run.cases)
    run.sweeps = last.sweeps
    run.boot, run.tests, run.collection = last.boot, last.report.seconds, last.command - last.report.seconds
    run.seconds = time.monotonic() - start
    return run


def attempt(job: Job) -> Attempt:
    """Run a job's pytest once."""
    with tempfile.TemporaryDirectory(prefix="pyiommufd-tests-") as folder:
        result = Attempt()
        try:
            status = (_here if job.machine is None else _in_guest)(job, Path(folder), result)
        except (GuestError, OSError) as error:
            result.error = str(error)
            if isinstance(error, GuestError) and not result.console:
                result.console = error.console
        result.report = read_report(Path(folder, "report.jsonl"))
        for found in sweeps.read(Path(folder, "sweeps.jsonl")):
            result.sweeps.append(Sweep(*found))
    if not result.error:
        orderly = status in _ORDERLY and result.report.complete and bool(result.failed) == (status == 1)
        if not orderly or result.report.unfinished:
            result.error = f"pytest ended with status {status}"
    if result.error and result.report.unfinished:
        result.error += f", in {result.report.unfinished}"
    return result


def _arguments(job: Job, folder: str) -> list[str]:
    return [f"--report-log={folder}/report.jsonl", *job.tests, *job.options]


def _here(job: Job, folder: Path, result: Attempt) -> int:
    start = time.monotonic()
    environment = {**os.environ, **job.environment, sweeps.LOG: str(folder / "sweeps.jsonl")}
    command = [sys.executable, "-m", "pytest", *_arguments(job, str(folder))]
    status, result.output = _command(command, environment, job.folder)
    result.command = time.monotonic() - start
    return status


def _in_guest(job: Job, folder: Path, result: Attempt) -> int:
    assert job.machine is not None
    start = time.monotonic()
    output = bytearray()
    guest = job.machine.guest(folder=job.folder, results=folder, boot_timeout=patience(30))
    try:
        guest.start()
        ready = time.monotonic()
        result.boot = ready - start
        environment = {**job.environment, **ENVIRONMENT, sweeps.LOG: "/results/sweeps.jsonl"}
        command = [*PYTEST, "-p", "pytest_reportlog.plugin", *_arguments(job, "/results")]
        if any("stress" in test for test in job.tests):
            command += ["-p", "_hypothesis_pytestplugin"]
        done = guest.run(
            command, env=environment, stdout=output.extend, stderr=output.extend, timeout=patience(job.seconds)
        )
        result.command = time.monotonic() - ready
        return done.returncode
    finally:
        guest.close()
        result.output, result.console = output.decode(errors="replace"), guest.console


def _command(command: list[str], environment: Mapping[str, str], folder: Path = ROOT) -> tuple[int, str]:
    """Run a command; its status, and what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def _tail(console: str) -> str:
    return "\n".join(console.splitlines()[-40:])


def compile_everything() -> None:
    """Compile the package and the tests, as Python and as pytest does it, here and not in each guest anew."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for command in (
        ["compileall", "-q", "pyiommufd", "tests"],
        ["pytest", "--collect-only", "-qq", "tests/guest"],
        ["pytest", "--collect-only", "-qq", "tests/conformance"],
    ):
        # What is wrong with a test is said where it runs.
        _command([sys.executable, "-m", *command], environment)
