"""Errors of the thread that supervises QEMU reach whoever waits for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.process import GuestProcess


@pytest.fixture
def lock(tmp_path: Path) -> int:
    return os.open(tmp_path, os.O_RDONLY)


def test_qemu_cannot_be_started(tmp_path: Path, lock: int) -> None:
    """By an error that is no OSError."""
    with pytest.raises(GuestError, match="cannot start QEMU: embedded null byte"):
        GuestProcess(tmp_path, lock, ["a\0b"], ())
    os.close(lock)


def test_its_files_are_gone_when_it_ends(tmp_path: Path, lock: int) -> None:
    work = tmp_path / "work"
    work.mkdir()
    code = f"import shutil; shutil.rmtree({str(work)!r})"
    process = GuestProcess(work, lock, [sys.executable, "-c", code, "--"], ())
    try:
        with pytest.raises(GuestError, match="the guest died: it turned itself off"):
            process.wait_ready(60)
    finally:
        process.close()
