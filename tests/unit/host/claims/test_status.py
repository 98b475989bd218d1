"""Who may see claims."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyiommufd import plan_claim
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.status import list_claims
from tests.unit.host.claims.kept import NAMES, keep

pytestmark = pytest.mark.usefixtures("vfio_machine")


def test_claims_are_roots_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(plan_claim(NAMES[0]))
    listdir = os.listdir

    def refuse(path: Path | str) -> list[str]:
        if Path(path) == journal.RUN:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(journal.NoAccessError, match="takes root"):
        list_claims()
