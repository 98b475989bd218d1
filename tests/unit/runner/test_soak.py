"""What a soak runs again, and what it keeps."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.runner.plan import Work
from tests.runner.runs import ROOT, Run, Sweep
from tests.runner.soak import Soak


class Works:
    """Two pieces of work; what was done, and what failed by then."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing = {"claims, kill"}

    def soak(self, file: Path, only: str | None = "") -> list[Run]:
        self.done.clear()
        works = [Work(name, partial(self._do, name)) for name in ("stress, rounds", "claims, kill")]
        with ThreadPoolExecutor(1) as pool:
            return Soak(file).run(works, pool, only)

    def _do(self, name: str) -> list[Run]:
        self.done.append(name)
        failures = [f"{name}: it failed"] if name in self.failing else []
        return [Run(name, passed=3, failures=failures, sweeps=[Sweep("some", 7, 7)])]


def test_what_failed_is_run_again_and_what_passed_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    works, file = Works(), tmp_path / "soak" / "commit.json"
    assert [run.failed for run in works.soak(file)] == [0, 1]
    works.failing.clear()
    assert [run.failed for run in works.soak(file)] == [0]
    assert works.done == ["claims, kill"]
    assert "stress, rounds (earlier)" in capsys.readouterr().out
    (run,) = works.soak(file)
    assert (works.done, run.passed, run.failed) == ([], 6, 0)  # all of it has passed: that is no failure
    works.soak(file, "kill")
    assert works.done == ["claims, kill"]  # named, it is run again


def test_table_that_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
    works, file = Works(), tmp_path / "commit.json"
    file.write_text('{"stress, rounds": {"poi')
    works.soak(file)
    assert works.done == ["stress, rounds", "claims, kill"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--soak", "stress", "-k", "rounds"],
            "--soak runs whole files, and keeps that they have passed: it takes no -k",
        ),
        (["--all", "tests/unit"], "leave one of --all and tests/unit out"),
    ],
)
def test_what_would_be_less_than_all_is_refused(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "tests.runner.suite", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
