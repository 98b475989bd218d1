"""What is made of a run's report, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runner.runs import Case, Run, read_report


def test_a_report_is_read_case_by_case(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.guest.core.test_dma" name="test_a"/>'
        '<testcase classname="tests.guest.core.test_dma" name="test_b"><skipped message="why"/></testcase>'
        '<testcase classname="tests.guest.core.test_dma" name="test_c"><failure message="E1"/></testcase>'
        '<testcase classname="tests.guest.core.test_dma" name="test_d"/>'
        '<testcase classname="tests.guest.core.test_dma" name="test_d"><error/></testcase></testsuite></testsuites>'
    )
    assert read_report(report) == [
        Case("test_dma::test_a", "passed"),
        Case("test_dma::test_b", "skipped", "why"),
        Case("test_dma::test_c", "failed", "E1"),
        Case("test_dma::test_d", "failed", "no message"),
    ]
    report.write_text("<testsuites>")
    assert read_report(report) is None


def test_what_failed_is_named_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("guest tests")
    run.count(
        [Case("test_dma::test_a", "passed"), Case("test_dma::test_b", "failed", "assert 1 == 2\n" + "x " * 999)], 1
    )
    assert (run.passed, run.failed) == (1, 1)
    run.show_failures()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("FAILED, guest tests: test_dma::test_b: assert 1 == 2 x x")
    assert len(line) < 500


@pytest.mark.parametrize(("cases", "status"), [(None, 0), (None, 1), ([], 1), ([Case("a", "passed")], 2)])
def test_a_run_that_ends_badly_is_a_failure(cases: list[Case] | None, status: int) -> None:
    run = Run("guest tests")
    run.count(cases, status)
    assert run.failed == 1
    assert f"status {status}" in run.failures[0]


@pytest.mark.parametrize("status", [0, 5])
def test_a_run_that_ends_well_is_none(status: int) -> None:
    run = Run("guest tests")
    run.count([], status)
    assert (run.passed, run.failed) == (0, 0)
