"""Runs the tests: what `tests/run` and continuous integration call, in the environment that they have made.

    python tests/suite.py [--all] [PATH…] [PYTEST OPTIONS]

Paths choose: those under tests/unit and tests/boot run here, those under tests/guest in a guest. Without any, all of
them run, after ruff and mypy; tests/boot, which starts guests of its own, with --all only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff check", ["ruff", "check", "."]),
    ("ruff format", ["ruff", "format", "--check", "."]),
    ("mypy", ["mypy"]),
)
GUEST_SECONDS = 900
NO_TESTS = 5  # pytest's exit status where the options chose none


@dataclass
class Run:
    """One run of pytest, or of a checker as a run of one test."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def read(self, report: Path, status: int) -> None:
        """Count what a junit report says; a run that ended without one, or badly, is a failure of its own."""
        try:
            cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - our own pytest wrote it
        except (OSError, ElementTree.ParseError):
            cases = []
            self.failed += 1
        for case in cases:
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
            elif skip is not None:
                self.skipped[skip.get("message") or "no reason given"] += 1
            else:
                self.passed += 1
        if status not in (0, NO_TESTS) and not self.failed:
            self.failed += 1


def title(text: str) -> None:
    """Say what comes now."""
    print(f"\n==== {text}", flush=True)


def check(name: str, command: list[str]) -> Run:
    """Run a checker."""
    title(name)
    start = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
    return Run(name, passed=int(not status), failed=int(bool(status)), seconds=time.monotonic() - start)


def here(name: str, arguments: list[str]) -> Run:
    """Run pytest on this machine."""
    title(name)
    run = Run(name)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *arguments]
        run.read(report, subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode)
    run.seconds = time.monotonic() - start
    return run


def in_guest(name: str, arguments: list[str]) -> Run:
    """Run pytest in a guest."""
    title(name)
    run = Run(name)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        inner = ["python", "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=/results/report.xml", *arguments]
        guest = [sys.executable, "-m", "pyiommufd.cli", "guest", f"--timeout={GUEST_SECONDS}", f"--results={folder}"]
        status = subprocess.run([*guest, "--", *inner], cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
        run.read(Path(folder) / "report.xml", status)
    run.seconds = time.monotonic() - start
    return run


def main() -> int:
    """Run what the arguments choose; 0 if all of it passed."""
    arguments = sys.argv[1:]
    everything = "--all" in arguments
    arguments = [argument for argument in arguments if argument != "--all"]
    paths = [argument for argument in arguments if argument.startswith("tests/")]
    options = [argument for argument in arguments if argument not in paths]

    def chosen(folder: str, by_default: bool = True) -> list[str]:
        mine = [path for path in paths if path.startswith(f"tests/{folder}")]
        return mine or ([f"tests/{folder}"] if by_default and not paths else [])

    runs = [] if arguments else [check(*one) for one in CHECKS]
    if where := chosen("unit"):
        runs.append(here("unit tests", [*where, *options]))
    if where := chosen("guest"):
        runs.append(in_guest("guest tests", [*where, *options]))
    if where := chosen("boot", everything):
        runs.append(here("tests that boot guests", [*where, *options]))

    title("summary")
    for run in runs:
        skipped = sum(run.skipped.values())
        print(f"{run.name:24} {run.passed:5} passed {run.failed:3} failed {skipped:3} skipped  {run.seconds:6.1f} s")
        for reason, count in run.skipped.most_common():
            print(f"{'':24} {count:5} skipped: {reason}")
    passed, failed = sum(run.passed for run in runs), sum(run.failed for run in runs)
    print(f"{passed} passed, {failed} failed, {sum(sum(run.skipped.values()) for run in runs)} skipped")
    return int(failed > 0 or not passed)


if __name__ == "__main__":
    sys.exit(main())
