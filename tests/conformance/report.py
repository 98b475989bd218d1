"""What came of a C program and of its twins, case by case."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.upstream import Outcome
from tests.runner.runs import Run

# Empty test bodies in C: only the set-up of their fixture is tested.
EMPTY = ("simple_close",)
EMPTY_WITHOUT_SETUP = ("iommufd.simple_close",)

_WORST = ("pass", "skip", "error", "fail")


@dataclass(frozen=True)
class Twin:
    """What a twin came to.

    Attributes:
        case: The case's name.
        route: How it goes.
        result: ``pass``, ``skip``, ``fail``, or ``error``, which is a failure in set-up or teardown.
    """

    case: str
    route: str
    result: str


def seconds_of(report: Path) -> float:
    """How long the run of a junit report took."""
    root = ElementTree.parse(report).getroot()  # noqa: S314 - our own pytest wrote it
    return sum(float(suite.get("time", "0")) for suite in root.iter("testsuite"))


def read_twins(report: Path) -> dict[str, Twin]:
    """The twins in a junit report, by their case.

    Raises:
        ValueError: There is none that can be read: pytest died.
    """
    try:
        elements = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - our own pytest wrote it
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"pytest left no report: {error}") from None
    twins: dict[str, Twin] = {}
    for element in elements:
        properties = {each.get("name"): each.get("value") or "" for each in element.iter("property")}
        if "case" not in properties:
            continue  # what is reported of a file, which counts by what it lacks
        result = "pass"
        # A failing call says more than what its teardown trips over then.
        for tag, name in (("skipped", "skip"), ("error", "error"), ("failure", "fail")):
            if element.find(tag) is not None:
                result = name
        case = properties["case"]
        # Where the call and the teardown fail, there may be two elements.
        if case not in twins or _WORST.index(result) > _WORST.index(twins[case].result):
            twins[case] = Twin(case, properties.get("route", ""), result)
    return twins


@dataclass(frozen=True)
class Comparison:
    """A C program beside its twins.

    Attributes:
        name: The program's.
        outcomes: The C program's cases.
        twins: Ours.
    """

    name: str
    outcomes: Mapping[str, Outcome]
    twins: Mapping[str, Twin]

    @property
    def expected(self) -> list[str]:
        """The cases that the C program passes."""
        return [case for case, outcome in self.outcomes.items() if outcome.result == "pass"]

    @property
    def line(self) -> str:
        """The program's part of the last line: so many of those are passed by their twins."""
        ours = [case for case in self.expected if case in self.twins and self.twins[case].result == "pass"]
        return f"{self.name} {len(ours)} of {len(self.expected)}"

    def table(self) -> Iterator[str]:
        """The lines of the table: case, C, ours, route."""
        cases = [*self.outcomes, *sorted(set(self.twins) - set(self.outcomes))]
        width = max(map(len, cases), default=0)
        yield f"{'case':{width}}  {'C':7} {'ours':7} route"
        for case in cases:
            theirs = self.outcomes[case].result if case in self.outcomes else "none"
            twin = self.twins.get(case)
            if twin is not None:
                yield f"{case:{width}}  {theirs:7} {twin.result:7} {twin.route}"
            else:
                yield f"{case:{width}}  {theirs:7} missing {self.outcomes[case].reason}".rstrip()

    def run(self, *, some: bool = False) -> Run:
        """The figures, and what is wrong.

        Args:
            some: Only some of the twins were to run, so that none is missing.
        """
        run = Run(f"conformance, {self.name}")
        for case in () if some else self.expected:
            if case not in self.twins:
                run.failures.append(f"{case}: the C program passes it, and it has no twin")
        for case, twin in self.twins.items():
            if case not in self.outcomes:
                run.failures.append(f"{case}: the C program has no such case")
            elif twin.result == "pass":
                run.passed += 1
            else:
                run.failures.append(f"{case}: the twin's result is {twin.result}")
        return run


def judge_noop(name: str, since: str, twins: Mapping[str, Twin], wanted: Mapping[str, Twin]) -> Run:
    """The figures of a run on a library that does nothing: a twin that passes there is a failure of this run.

    Args:
        name: The program's.
        since: Whether from the set-up or from the call on.
        twins: What came of the twins.
        wanted: The twins that there are.
    """
    run = Run(f"{name}, no-op in {since}")
    for case in wanted:
        result = twins[case].result if case in twins else "none"
        empty = case in EMPTY_WITHOUT_SETUP if since == "setup" else case.endswith(EMPTY)
        # From the call on, an error would be one of set-up or teardown: not what was to notice.
        noticed = result in (("fail", "error") if since == "setup" else ("fail",))
        if empty and result == "pass":
            run.skipped["an empty case, in C as well"] += 1
        elif noticed and not empty:
            run.passed += 1
        else:
            why = f"on a library whose ioctls do nothing from the {since} on, its result is {result}"
            run.failures.append(f"{case}: {why}")
    return run
