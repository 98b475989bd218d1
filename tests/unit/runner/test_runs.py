"""What is made of a run's report, and what is said of it; what fails is run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.guest_pytest import ENVIRONMENT
from tests.runner.history import History
from tests.runner.reports import Case, read_report
from tests.runner.runs import Job, Run, Sweep, run_job
from tests.runner.summary import slowest, summary


def line(nodeid: str, when: str, outcome: str, longrepr: Any = None, start: float = 0.0) -> str:
    report = {"$report_type": "TestReport", "nodeid": nodeid, "when": when, "outcome": outcome, "longrepr": longrepr}
    return json.dumps({**report, "duration": 1.5, "start": start, "stop": start + 1.5})


def test_a_report_is_read_case_by_case(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    crash = {"reprcrash": {"message": "E1"}}
    lines = [
        line("tests/test_dma.py::test_a", "setup", "passed", start=10),
        line("tests/test_dma.py::test_a", "call", "passed", start=12),
        line("tests/test_dma.py::test_b", "setup", "skipped", ["test_dma.py", 1, "Skipped: why"]),
        line("tests/test_dma.py::test_c", "call", "failed", crash, start=20),
        line("tests/test_dma.py::test_c", "teardown", "failed", {"reprcrash": {"message": "E2"}}),
        json.dumps({"$report_type": "CollectReport", "nodeid": "tests/x.py", "outcome": "failed", "longrepr": "no"}),
    ]
    report.write_text("\n".join([*lines, '{"$report_type": "SessionFini']))
    read = read_report(report)
    assert list(read.cases.values()) == [
        Case("tests/test_dma.py::test_a", "passed", "", 3.0),
        Case("tests/test_dma.py::test_b", "skipped", "why", 1.5),
        Case("tests/test_dma.py::test_c", "failed", "E1", 3.0),
        Case("tests/x.py", "failed", "no"),
    ]
    assert [case.name for case in read.cases.values()][::3] == ["test_dma::test_a", "x"]
    assert not read.complete
    report.write_text(json.dumps({"$report_type": "SessionFinish", "exitstatus": 0}))
    assert read_report(report).complete
    assert not read_report(tmp_path / "none").complete


def test_what_failed_is_named_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("guest tests")
    run.count([Case("test_dma.py::test_a", "passed"), Case("test_dma.py::test_b", "failed", "assert 1\n" + "x " * 999)])
    assert (run.passed, run.failed) == (1, 1)
    run.show_failures()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("FAILED, guest tests: test_dma::test_b: assert 1 x x")
    assert len(line) < 500


Write = Callable[[str], Job]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A job of a file of tests with this text."""

    def write(text: str) -> Job:
        file = tmp_path / "test_written.py"
        file.write_text(text)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        options = ("-q", "-p", "no:cacheprovider", "-p", "pytest_reportlog.plugin")
        return Job("written", (file.name,), options=options, environment=ENVIRONMENT, folder=tmp_path)

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\ndef test_a(): os._exit(3)", "status 3"),
        ("import pytest\ndef test_a(): pytest.exit('x', 0)", "status 0, in test_written.py::test_a"),
        ("def test_a(): raise KeyboardInterrupt", "status 2"),
        ("import os, signal\ndef test_a(): os.kill(os.getpid(), signal.SIGKILL)", "status -9"),
    ],
    ids=["None-0", "None-1", "cases2-1", "cases3-2"],
)
def test_a_run_that_ends_badly_is_a_failure(write: Write, text: str, message: str) -> None:
    run = run_job(write(text), show=False)
    assert run.failed == 1
    assert message in run.failures[0]


@pytest.mark.parametrize("status", [0, 5])
def test_a_run_that_ends_well_is_none(write: Write, status: int) -> None:
    job = write("def test_a(): pass")
    run = run_job(replace(job, options=(*job.options, "-ktest_a" if status == 0 else "-knone")), show=False)
    assert (run.passed, run.failed, run.unsteady) == (int(status == 0), 0, [])
    assert run.collection > 0


EVERY_SECOND = """
from pathlib import Path

def test_unsteady(request):
    runs = Path(__file__).with_name("runs")
    with runs.open("a") as file:
        file.write("x")
    assert len(runs.read_text()) % 2 == 0, "every second time"

def test_bad():
    assert False, "always"

def test_good():
    pass
"""


def test_what_fails_is_run_again_and_is_unsteady_where_it_passes_then(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_job(write(EVERY_SECOND), show=False)
    assert (run.passed, run.failures) == (2, ["test_written::test_bad: AssertionError: always\nassert False"])
    (unsteady,) = run.unsteady
    assert unsteady.test == "test_written.py::test_unsteady"
    assert "every second time" in unsteady.reason
    assert "every second time" in unsteady.log
    history = History(tmp_path / "unsteady")
    (first, reason) = history.add("c0ffee", "1", run.unsteady)
    assert "a defect" not in first
    assert "every second time" in reason
    log = Path(first.rpartition(" see ")[2])
    assert log.read_text().startswith("commit c0ffee, seed 1\nwritten: test_written.py::test_unsteady\n")
    (second, _) = history.add("c0ffee", "2", run.unsteady)
    assert "in 2 of the last 2 runs, a defect" in second
    assert summary([run], 0.0, [second]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == ["unsteady: 1", "2 passed, 1 failed, 0 skipped"]
    assert "UNSTEADY, written: test_written.py::test_unsteady: in 2 of the last 2 runs" in out[-3]


def test_a_guest_that_dies_once_is_unsteady(write: Write) -> None:
    run = run_job(
        write(
            EVERY_SECOND.replace("assert len", "import os\n    len")
            .replace('% 2 == 0, "every second time"', "% 2 == 0 or os._exit(9)")
            .replace("assert False", "assert True")
        ),
        show=False,
    )
    assert (run.passed, run.failures) == (3, [])
    assert [(each.test, each.reason) for each in run.unsteady] == [
        ("written", "pytest ended with status 9, in test_written.py::test_unsteady")
    ]


def test_history_keeps_the_last_ten_runs(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in range(12):
        history.add(f"{number}", "1", [])
    assert [run["commit"] for run in history.runs()] == [str(number) for number in range(2, 12)]
    (tmp_path / "runs.json").write_text("[{")
    assert history.runs() == []


def test_slowest_functions_and_sweeps_are_summed(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = Run("one"), Run("two")
    one.count([Case("a.py::test_a[1]", "passed", "", 2.0), Case("a.py::test_a[2]", "passed", "", 3.0)])
    two.count([Case("a.py::test_a[1]", "passed", "", 4.0)])
    assert slowest([one, two]) == [(5.0, "one: a.py::test_a", 2), (4.0, "two: a.py::test_a", 1)]
    one.sweeps, two.sweeps = [Sweep("kill", 10, 3)], [Sweep("kill", 5, 1)]
    assert summary([one, two], 0.0) == 0
    assert "       4 of     15  kill" in capsys.readouterr().out
