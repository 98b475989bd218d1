"""What the tests of claims share: a claim on record, and a machine where claims need no driver to move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord
from pyiommufd.host.persistent import boot_unit, claim_file
from tests.fake_sysfs import FakeSysfs
from tests.unit.host.claims.kept import BOARD, NAMES


@pytest.fixture
def on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ClaimRecord], None]:
    """Writes a claim's record; the journal has no other."""
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(journal, "RUN", run)
    return journal.write


@pytest.fixture
def vfio_machine(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """Two devices, each alone in its group and on vfio-pci, on a machine with systemd."""
    monkeypatch.setattr(journal, "RUN", tmp_path / "run")
    monkeypatch.setattr(claim_file, "FOLDER", tmp_path / "etc/claims.d")
    monkeypatch.setattr(boot_unit, "FOLDER", tmp_path / "system")
    monkeypatch.setattr(boot_unit, "has_systemd", lambda: True)
    monkeypatch.setattr("shutil.which", lambda *what, **where: None)  # this machine's systemctl is left alone
    fake.pci(NAMES[0], group=2, driver="vfio-pci", cdev=0, **BOARD)
    fake.pci(NAMES[1], group=3, driver="vfio-pci", cdev=1, ids=(0x8086, 0x10FB), **BOARD)
    return fake
