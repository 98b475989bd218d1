"""What is made of the results of a C program and of its twins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.cases import Route, twin
from tests.conformance.report import Comparison, Twin, judge_noop, read_twins, seconds_of
from tests.conformance.upstream import Outcome


def twins(**results: str) -> dict[str, Twin]:
    return {name.replace("__", "."): Twin(name.replace("__", "."), "public API", end) for name, end in results.items()}


def outcomes(**results: str) -> dict[str, Outcome]:
    return {name.replace("__", "."): Outcome(result) for name, result in results.items()}


def test_what_counts() -> None:
    theirs = outcomes(a__good="pass", a__bad="pass", a__skipped="pass", a__broken="fail", a__none="pass", a__off="skip")
    ours = twins(a__good="pass", a__bad="fail", a__skipped="skip", a__broken="pass", a__typo="pass")
    comparison = Comparison("tiny", theirs, ours)
    assert comparison.line == "tiny 1 of 4"
    run = comparison.run()
    # A twin that fails, one that skips, a case without a twin, a twin without a case.
    assert (run.passed, run.failed, run.skipped.total()) == (2, 4, 0)
    for words in ("a.bad: the twin's result is fail", "a.none: the C program passes it, and it has no twin"):
        assert words in run.failures
    assert "a.typo: the C program has no such case" in run.failures
    run = comparison.run(some=True)
    assert (run.passed, run.failed, run.skipped.total()) == (2, 3, 0)


def test_table() -> None:
    theirs = outcomes(a__good="pass") | {"a.off": Outcome("skip", "not here")}
    lines = list(Comparison("tiny", theirs, twins(a__good="pass")).table())
    assert [line.split()[:3] for line in lines[:2]] == [["case", "C", "ours"], ["a.good", "pass", "pass"]]
    assert lines[1].endswith("public API")
    assert lines[2].split()[:3] == ["a.off", "skip", "missing"]
    assert lines[2].endswith("not here")


def test_a_library_that_does_nothing() -> None:
    wanted = twins(a__case="pass", iommufd__simple_close="pass", b__c__simple_close="pass")
    good = judge_noop(
        "tiny", "setup", twins(a__case="error", iommufd__simple_close="pass", b__c__simple_close="error"), wanted
    )
    assert (good.passed, good.failed, good.skipped.total()) == (2, 0, 1)
    good = judge_noop(
        "tiny", "call", twins(a__case="fail", iommufd__simple_close="pass", b__c__simple_close="pass"), wanted
    )
    assert (good.passed, good.failed, good.skipped.total()) == (1, 0, 2)


@pytest.mark.parametrize(
    ("since", "result"), [("setup", "pass"), ("setup", "skip"), ("call", "pass"), ("call", "error")]
)
def test_a_twin_that_notices_nothing(since: str, result: str) -> None:
    assert judge_noop("tiny", since, twins(a__case=result), twins(a__case="pass")).failed == 1
    assert judge_noop("tiny", since, {}, twins(a__case="pass")).failed == 1


REPORT = """\
<testsuites><testsuite name="pytest" time="1.5">
<testcase name="a"><properties><property name="case" value="a.good"/><property name="route" value="public API"/>
</properties></testcase>
<testcase name="b"><properties><property name="case" value="a.bad"/></properties><failure/><error/></testcase>
<testcase name="c"><properties><property name="case" value="a.twice"/></properties><error/></testcase>
<testcase name="c"><properties><property name="case" value="a.twice"/></properties></testcase>
<testcase name="d"><properties><property name="case" value="a.skipped"/></properties><skipped/></testcase>
<testcase name="file"><error/></testcase>
</testsuite></testsuites>
"""


def test_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    results = {case: twin.result for case, twin in read_twins(report).items()}
    assert results == {"a.good": "pass", "a.bad": "fail", "a.twice": "error", "a.skipped": "skip"}
    assert read_twins(report)["a.good"].route == Route.PUBLIC
    assert seconds_of(report) == 1.5
    with pytest.raises(ValueError, match="no report"):
        read_twins(tmp_path / "none.xml")


def test_a_twin_names_fixture_and_case() -> None:
    with pytest.raises(ValueError, match=r"FIXTURE\.CASE"):
        twin("iommufd.variant.case", Route.PUBLIC)
