"""The record of claims in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyiommufd import ClaimError
from pyiommufd.host import journal
from pyiommufd.host.journal import Before, Entry, State


def entry(pid: int | None = None) -> Entry:
    pid = os.getpid() if pid is None else pid
    devices = [
        Before("0000:02:01.0", "pci", "/sys/devices/x", None, None),
        Before("0000:02:03.0", "pci", "/sys/devices/y", "virtio-pci", "a driver"),
    ]
    return Entry("abc", State.SESSION, pid, journal.start_time(pid) or 0, [5], devices)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    one, two = entry(), entry()
    two.id, two.state, two.devices = "def", State.KEPT, []
    for each in (one, two):
        journal.write(tmp_path, each)
    assert journal.entries(tmp_path) == [one, two]
    one.state = State.IN_PROGRESS
    journal.write(tmp_path, one)
    assert journal.entries(tmp_path) == [one, two]
    journal.remove(tmp_path, one)
    journal.remove(tmp_path, one)
    assert journal.entries(tmp_path) == [two]


def test_no_folder_no_entries(tmp_path: Path) -> None:
    assert journal.entries(tmp_path / "none") == []


def test_draft_that_was_not_finished_leaves_the_entry(tmp_path: Path) -> None:
    journal.write(tmp_path, entry())
    (tmp_path / "abc.draft").write_text('{"id": "abc", "sta')
    assert journal.entries(tmp_path) == [entry()]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"state": "lost"}', '{"state": "kept", "devices": [1]}']
)
def test_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ClaimError, match=r"x\.json is no record"):
        journal.entries(tmp_path)


def test_record_is_its_owners_only(tmp_path: Path) -> None:
    with journal.locked(tmp_path / "run"):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "run/lock").stat().st_mode & 0o777 == 0o600


def test_lock_keeps_others_waiting(tmp_path: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with journal.locked(tmp_path):
            order.append("other")

    with journal.locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClaimError, match="cannot write"), journal.locked(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClaimError, match="takes root"), journal.locked(tmp_path / "file/run"):
        pass


def test_alive() -> None:
    assert entry().alive
    stale = entry()
    stale.start_time -= 1
    assert not stale.alive


def test_process_that_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    one = entry(process.pid)
    states = [one.alive]
    process.kill()
    # Not waited for: it is there as a zombie.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    states.append(one.alive)
    process.communicate()
    states.append(one.alive)
    assert states == [True, False, False]
    assert journal.start_time(process.pid) is None


def test_name_of_a_process_may_hold_brackets(tmp_path: Path) -> None:
    odd = tmp_path / ") Z 1 (x"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "30"]) as process:
        try:
            assert journal.start_time(process.pid) is not None
        finally:
            process.kill()
