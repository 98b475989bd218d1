"""What pytest says of a run, in a report log: a line of JSON for each thing that happens, as it happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WORST = ("passed", "skipped", "failed")


@dataclass(frozen=True)
class Case:
    """One test of a run.

    Attributes:
        nodeid: Pytest's name of it.
        outcome: ``passed``, ``failed`` or ``skipped``.
        reason: Why it was skipped, or what it failed by.
        seconds: How long it took, with its set-up and teardown.
    """

    nodeid: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The file without its ending, and the function, such as ``test_dma::test_replace``."""
        file, _, function = self.nodeid.partition("::")
        return f"{Path(file).stem}::{function}" if function else Path(file).stem

    @property
    def function(self) -> str:
        """Its function, which it may share with tests of other parameters."""
        return self.nodeid.partition("[")[0]


@dataclass
class Report:
    """A report log, as far as it was written.

    Attributes:
        cases: The tests, by node id.
        seconds: From the start of the first test to the end of the last one.
        complete: Whether pytest came to its end.
        unfinished: The test that had begun and not ended; empty: none.
    """

    cases: dict[str, Case] = field(default_factory=dict)
    seconds: float = 0.0
    complete: bool = False
    unfinished: str = ""


def read_report(log: Path) -> Report:
    """Read a report log; it ends where the machine that wrote it did."""
    report = Report()
    starts, stops = [], []
    for entry in _entries(log):
        kind = entry.get("$report_type")
        if kind == "SessionFinish":
            report.complete = True
        if kind not in ("TestReport", "CollectReport") or (kind == "CollectReport" and entry["outcome"] == "passed"):
            continue
        if kind == "TestReport":
            starts.append(entry["start"])
            stops.append(entry["stop"])
            report.unfinished = "" if entry["when"] == "teardown" else entry["nodeid"]
        nodeid, outcome = entry["nodeid"], entry["outcome"]
        reason = "" if outcome == "passed" else _reason(entry)
        before = report.cases.get(nodeid, Case(nodeid, "passed"))
        seconds = before.seconds + entry.get("duration", 0.0)
        # What a test fails by first says more than what its teardown trips over then.
        if _WORST.index(outcome) <= _WORST.index(before.outcome):
            outcome, reason = before.outcome, before.reason
        report.cases[nodeid] = Case(nodeid, outcome, reason, seconds)
    report.seconds = max(stops, default=0.0) - min(starts, default=0.0)
    return report


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return  # cut off


def _reason(entry: dict[str, Any]) -> str:
    text = entry["longrepr"]
    if entry["outcome"] == "skipped":
        if entry.get("wasxfail"):
            return f"expected to fail: {entry['wasxfail']}"
        return str(text[-1]).removeprefix("Skipped: ") if isinstance(text, list) else str(text or "no reason given")
    if isinstance(text, dict) and text.get("reprcrash"):
        return str(text["reprcrash"]["message"])
    return str(text or "no message")
