"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyiommufd.host import durable


def test_written_whole_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a/b/file.toml"
    before = os.umask(0o077)
    try:
        durable.write(path, "one\n")
        durable.write(path, "two\n", 0o640)
    finally:
        os.umask(before)
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["file.toml"]


def test_draft_that_was_not_finished_is_no_file_and_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    durable.write(path, "old\n")
    (tmp_path / "file.toml.draft").write_text("ne")
    assert list(tmp_path.glob("*.toml")) == [path]
    durable.write(path, "new\n")
    assert path.read_text() == "new\n"
    (tmp_path / "file.toml.draft").write_text("ne")
    durable.remove_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_link_in_place_of_the_draft_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "file.draft").symlink_to(tmp_path / "elsewhere")
    durable.write(tmp_path / "file", "text")
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "text"


def test_each_is_on_disk_before_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is synced, and when, seen from the system calls: no power cut can be had here."""
    done: list[str] = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def synced(fd: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def replaced(path: Path, to: Path) -> Path:
        done.append("rename")
        return replace(path, to)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        done.append("unlink")
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    durable.write(tmp_path / "new/file", "text")
    assert done == [f"sync {tmp_path.name}", "unlink", "sync file.draft", "rename", "sync new"]
    done.clear()
    durable.remove(tmp_path / "new/file")
    assert done == ["unlink", "sync new"]
    durable.remove(tmp_path / "new/file")


def test_commit_makes_the_change_once_and_passes_failures_on(caplog: pytest.LogCaptureFixture) -> None:
    made = []
    with caplog.at_level("DEBUG", logger="pyiommufd"):
        durable.commit("a change", lambda: made.append(1))
    assert made == [1]
    assert "a change" in caplog.messages

    def fails() -> None:
        raise OSError(16, "busy")

    with pytest.raises(OSError, match="busy"):
        durable.commit("a change", fails)
