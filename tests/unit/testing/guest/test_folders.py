"""Temporary folders: those whose maker is gone are removed by the next, and nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pyiommufd.testing.guest.folders import RESULTS, WORK, make_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_over(prefix: str) -> Path:
    """A folder whose lock is free, as after its maker's end."""
    folder, lock = make_folder(prefix)
    os.close(lock)
    return folder


def start() -> None:
    """Make a folder, as every start of a guest does, and remove it."""
    folder, lock = make_folder(WORK)
    folder.rmdir()
    os.close(lock)


def test_folder_is_closed_to_others() -> None:
    assert left_over(WORK).stat().st_mode & 0o777 == 0o700


def test_left_over_folder_is_removed_and_a_locked_one_stays(folder: Path) -> None:
    locked, lock = make_folder(WORK)
    work = left_over(WORK)
    (work / "console").write_text("x")
    start()
    assert list(folder.iterdir()) == [locked]
    os.close(lock)


def test_folder_stays_as_long_as_a_process_that_inherited_its_lock() -> None:
    work, lock = make_folder(WORK)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]) as heir:
        os.close(lock)
        start()
        assert work.exists()
        heir.communicate(b"\n")
    start()
    assert not work.exists()


def test_results_stay() -> None:
    empty, used = left_over(RESULTS), left_over(RESULTS)
    (used / "report").write_text("x")
    start()
    assert not empty.exists()
    assert (used / "report").exists()


def test_what_only_has_such_a_name_stays(folder: Path) -> None:
    target = folder / "target"
    target.mkdir()
    (target / "file").touch()
    (folder / f"{WORK}link").symlink_to(target)
    (folder / f"{WORK}file").touch()
    os.mkfifo(folder / f"{WORK}fifo")
    before = sorted(folder.rglob("*"))
    start()
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_folder_of_another_user_stays() -> None:
    theirs = left_over(WORK)
    os.chown(theirs, 1234, 1234)
    start()
    assert theirs.exists()
    shutil.rmtree(theirs)
