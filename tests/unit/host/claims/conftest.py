"""What the tests of claims share: a claim on record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord


@pytest.fixture
def on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ClaimRecord], None]:
    """Writes a claim's record; the journal has no other."""
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(journal, "RUN", run)
    return journal.write
