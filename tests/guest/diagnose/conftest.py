"""The table of causes: what was produced on this kernel, and whether the stated fix helps."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.runner.causes import CauseRow, Prover, lines

_TABLE = pytest.StashKey[list[CauseRow]]()


@pytest.fixture
def prove(request: pytest.FixtureRequest) -> Prover:
    """See `Prover`."""
    return Prover(request.config.stash.setdefault(_TABLE, []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and leave it where the guest's results are kept."""
    table = config.stash.get(_TABLE, [])
    if not table:
        return
    terminalreporter.section("causes")
    for line in lines(table):
        terminalreporter.write_line(line)
    if results := os.environ.get("PYIOMMUFD_RESULTS"):
        (Path(results) / "causes.json").write_text(json.dumps([asdict(row) for row in table]))
