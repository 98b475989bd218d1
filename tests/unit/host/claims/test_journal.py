"""The record of claims in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiommufd import ClaimError
from pyiommufd.host.claims import claim_locks, journal
from pyiommufd.host.claims.record import VERSION, ClaimRecord, ClaimState, DeviceState, parse, start_time
from tests.patience import until


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the record, made when it is first locked."""
    folder = tmp_path / "run"
    monkeypatch.setattr(journal, "RUN", folder)
    yield folder
    for path in folder.glob("*.json"):
        claim_locks.release(path)


def entry(pid: int | None = None) -> ClaimRecord:
    pid = os.getpid() if pid is None else pid
    devices = [
        DeviceState("0000:02:01.0", "pci", "/sys/devices/x", None, None),
        DeviceState("0000:02:03.0", "pci", "/sys/devices/y", "virtio-pci", "a driver"),
    ]
    return ClaimRecord("abc", ClaimState.SESSION, pid, start_time(pid) or 0, [5], devices)


def test_what_is_written_is_read() -> None:
    one, two = entry(), entry()
    two.id, two.state, two.devices = "def", ClaimState.KEPT, []
    for each in (one, two):
        journal.write(each)
    assert journal.records() == [one, two]
    one.state = ClaimState.IN_PROGRESS
    journal.write(one)
    assert journal.records() == [one, two]
    journal.remove(one)
    journal.remove(one)
    assert journal.records() == [two]


def test_no_folder_no_entries() -> None:
    assert journal.records() == []


def test_draft_that_was_not_finished_leaves_the_entry(run: Path) -> None:
    journal.write(entry())
    (run / "abc.draft").write_text('{"id": "abc", "sta')
    assert journal.records() == [entry()]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"state": "lost"}', '{"state": "kept", "devices": [1]}']
)
def test_file_that_is_no_record_is_named(run: Path, text: str) -> None:
    run.mkdir(mode=0o700)
    (run / "x.json").write_text(text)
    with pytest.raises(ClaimError, match=r"x\.json is not a record"):
        journal.records()


@pytest.mark.parametrize(
    "wrong",
    [
        {"created": "x"},
        {"waiting": {"0000:00:01.0": 5}},
        {"waiting": {"0000:00:01.0": [1]}},
        {"wanted": 5},
        {"wanted": [5]},
        {"groups": None},
        {"pid": True},
        {"since": 1e99},
        {"since": float("nan")},
        {"nodes": [{"path": "/dev/iommu"}]},
        {"file": 7},
        {"state": "newer"},
        {"version": "2"},
        {"unheard": "of"},
        {"devices": [{"name": "a", "subsystem": "pci", "sys_path": "/sys", "driver": "../x", "driver_override": None}]},
    ],
)
def test_record_of_a_wrong_shape_is_named(run: Path, wrong: dict[str, Any]) -> None:
    one = entry()
    journal.write(one)
    path = run / "abc.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(ClaimError, match=r"abc\.json is not a record of a claim \(.+\); look at it and remove it"):
        journal.records()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.sampled_from([*ClaimRecord.__slots__, "version"]), one),
    )
)
def test_whatever_json_holds_it_is_a_record_or_a_value_error(data: Any) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse(data), ClaimRecord)


def test_record_of_a_newer_version_is_left_alone(run: Path) -> None:
    journal.write(entry())
    path = run / "abc.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"version": VERSION + 1, "pid": "another form"}))
    (newer,) = journal.records()
    assert (newer.id, newer.state) == ("abc", ClaimState.NEWER)
    assert newer.names == {"0000:02:01.0", "0000:02:03.0"}
    assert "newer pyiommufd: use that one" in journal.describe_owner(newer)
    # Nor is it removed when its boot is over; that is for the newer one to do.
    path.write_text(json.dumps(data | {"version": VERSION + 1, "boot": "of yesterday"}))
    with journal.locked():
        assert journal.records() == []
        assert path.exists()


def test_record_is_its_owners_only(run: Path) -> None:
    with journal.locked():
        assert run.stat().st_mode & 0o777 == 0o700
        assert (run / "lock").stat().st_mode & 0o777 == 0o600


def test_lock_keeps_others_waiting() -> None:
    order: list[str] = []

    def other() -> None:
        with journal.locked():
            order.append("other")

    with journal.locked():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_lock_that_is_a_link_is_not_followed(run: Path, tmp_path: Path) -> None:
    run.mkdir(mode=0o700)
    (run / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClaimError, match="cannot write"), journal.locked():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_folder_that_cannot_be_made(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN", tmp_path / "file/run")
    (tmp_path / "file").touch()
    with pytest.raises(ClaimError, match=r"; this takes root$"), journal.locked():
        pass


def test_alive() -> None:
    assert journal.is_alive(entry())
    stale = entry()
    stale.start_time -= 1
    assert not journal.is_alive(stale)


def test_process_that_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    one = entry(process.pid)
    states = [journal.is_alive(one)]
    process.kill()
    # Not waited for: it is there as a zombie.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    states.append(journal.is_alive(one))
    process.communicate()
    states.append(journal.is_alive(one))
    assert states == [True, False, False]
    assert start_time(process.pid) is None


def test_name_of_a_process_may_hold_brackets(tmp_path: Path) -> None:
    odd = tmp_path / ") Z 1 (x"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "30"]) as process:
        try:
            assert start_time(process.pid) is not None
        finally:
            process.kill()


def test_functions_of_a_device_are_read_as_well() -> None:
    one = entry()
    one.devices[1].vfs = [DeviceState("0000:02:03.1", "pci", "/sys/devices/z", None, "pci-stub")]
    one.wanted = ["0000:02:07.0"]
    journal.write(one)
    assert journal.find(one.id) == one
    assert one.names == {"0000:02:01.0", "0000:02:03.0", "0000:02:03.1", "0000:02:07.0"}
    assert journal.find("none") is None


def test_entries_come_in_the_order_in_which_they_were_begun() -> None:
    begun = [ClaimRecord.begin([number]) for number in range(5)]
    for one in reversed(begun):
        journal.write(one)
    assert journal.records() == begun


def test_entry_of_another_boot_is_passed_over_and_then_removed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    stale, fresh = entry(), entry()
    stale.boot, fresh.id = "of yesterday", "def"
    for one in (stale, fresh):
        journal.write(one)
    (run / "abc.draft").touch()
    assert journal.records() == [fresh]
    with journal.locked():
        assert sorted(path.name for path in run.iterdir()) == ["def.json", "lock"]
    assert "abc.json is of an earlier boot" in caplog.text
    assert fresh.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_what_is_wrong_with_one_file_does_not_hide_the_others(run: Path) -> None:
    journal.write(entry())
    (run / "x.json").write_text("{")
    found, errors = journal.read_all()
    assert found == [entry()]
    assert len(errors) == 1
    assert "x.json" in str(errors[0])


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folder_that_others_may_write_is_refused(run: Path, mode: int) -> None:
    run.mkdir()
    run.chmod(mode)
    with pytest.raises(ClaimError, match="not safe"), journal.locked():
        pass
    assert list(run.iterdir()) == []


def test_folder_that_is_a_link_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClaimError, match="not safe"), journal.locked():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another's")
@pytest.mark.parametrize("name", ["", "lock", "abc.json"])
def test_folder_or_file_of_another_user_is_refused(run: Path, name: str) -> None:
    with journal.locked():
        journal.write(entry())
    os.chown(run / name, 65534, -1)
    with pytest.raises(ClaimError, match="not safe"), journal.locked():
        journal.records()


def test_record_that_others_may_write_is_refused(run: Path) -> None:
    journal.write(entry())
    assert (run / "abc.json").stat().st_mode & 0o777 == 0o600
    (run / "abc.json").chmod(0o606)
    with pytest.raises(ClaimError, match=r"abc\.json is not safe"):
        journal.records()


def test_record_that_is_a_link_or_a_pipe_is_refused(run: Path, tmp_path: Path) -> None:
    run.mkdir()
    (tmp_path / "elsewhere").write_text(entry().text())
    (run / "x.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClaimError, match=r"x\.json"):
        journal.records()
    (run / "x.json").unlink()
    os.mkfifo(run / "x.json")
    (run / "x.json").chmod(0o600)
    with pytest.raises(ClaimError, match=r"x\.json is not safe"):
        journal.records()


def test_lock_that_is_not_given_up_names_its_holder() -> None:
    with (
        journal.locked(),
        pytest.raises(ClaimError, match=f"within 0.1 s.*lock is locked by this process .pid {os.getpid()}"),
        journal.locked(0.1),
    ):
        pass
    with journal.locked(0.1):
        pass


def test_lock_goes_round_in_the_order_in_which_it_was_asked_for() -> None:
    order: list[int] = []

    def work(number: int) -> None:
        with journal.locked():
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    with journal.locked():
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: waiting_for_locks() == number + 1, "it waits in the kernel")  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def waiting_for_locks() -> int:
    """How many waits of this process for a lock the kernel has on its list (proc_locks(5))."""
    lines = Path("/proc/locks").read_text().splitlines()
    return sum("->" in line and f" {os.getpid()} " in line for line in lines)


def test_wait_that_was_given_up_leaves_nothing_behind() -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with journal.locked(), pytest.raises(ClaimError, match="not ended"), journal.locked(0.1):
        pass
    until(
        lambda: sum(1 for _ in Path("/proc/self/fd").iterdir()) == before, "the thread that waited has closed the file"
    )
    with journal.locked(0.1):
        pass


def test_waiting_for_the_lock_can_be_ended() -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise ClaimError("interrupted")

    with (
        journal.locked(),
        pytest.raises(ClaimError, match="interrupted"),
        journal.locked(60, check),
    ):
        pass
    assert len(asked) == 3


def test_lock_is_given_up_though_a_child_has_it_open() -> None:
    """As a helper does that waits in the kernel."""
    with journal.locked() as fd:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd])
    try:
        with journal.locked(0.1):
            pass
    finally:
        child.communicate(b"\n")


def test_whose_it_is() -> None:
    one = entry()
    assert journal.describe_owner(one) == f"this process (pid {os.getpid()})"
    one.start_time -= 1
    assert journal.describe_owner(one) == "a process that has ended"
    assert journal.way_to_release(one) == ("recover() gives it back", "pyiommufd recover gives it back")
    one.state = ClaimState.KEPT
    assert journal.describe_owner(one) == "a kept claim"
    released = ("release(['0000:02:01.0']) gives it back", "pyiommufd release 0000:02:01.0 gives it back")
    assert journal.way_to_release(one) == released
    one.take_over()
    one.pid = 0
    assert journal.describe_owner(one) == "a claim that was not given back completely"
    way = journal.way_to_release(one)
    assert way is not None
    assert way.command == "pyiommufd release 0000:02:01.0 continues it"
    assert not journal.is_alive(one)
    one.take_over()
    assert (one.state, journal.is_alive(one)) == (ClaimState.IN_PROGRESS, True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_child_that_was_forked_while_the_lock_was_waited_for_does_not_keep_it() -> None:
    """It has the file open as well; the wait is given up, and the lock with it."""
    with journal.locked():
        child = 0

        def check() -> None:
            nonlocal child
            if waiting_for_locks() and not child:
                child = os.fork()
                if not child:
                    signal.pause()
                raise ClaimError("interrupted")

        with pytest.raises(ClaimError, match="interrupted"), journal.locked(60, check):
            pass
    try:
        with journal.locked(10):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
