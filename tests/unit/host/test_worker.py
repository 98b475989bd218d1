"""A process that reads and writes for this one, and is left alone where the kernel keeps it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd.host import worker as worker_module
from pyiommufd.host.worker import StuckError, Worker
from tests.patience import patience, until


@pytest.fixture
def helper() -> Iterator[Worker]:
    with Worker() as helper:
        yield helper


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[Path]:
    """A pipe that blocks whoever opens it, as an attribute may; what has been left behind ends with the test."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path
    for process in worker_module._abandoned:
        assert process.wait(patience()) == -signal.SIGKILL
    worker_module._abandoned.clear()


def test_reads_and_writes_by_one_process(helper: Worker, tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_text(" before \n")
    assert helper.read(path) == "before"
    process = helper._process
    helper.write(path, "ü and\nmore\n")
    assert path.read_text().startswith("ü and\nmore\n")
    assert helper.read(tmp_path / "none") is None
    with pytest.raises(FileNotFoundError) as caught:
        helper.write(tmp_path / "none", "x")
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(OSError, match="No space left") as refused:
        helper.write(Path("/dev/full"), "x")
    assert refused.value.errno == errno.ENOSPC
    assert helper._process is process
    assert process is not None
    helper.close()
    assert process.returncode == 0


def test_what_blocks_is_given_up_and_the_next_access_works(helper: Worker, blocks: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(StuckError, match=r"did not return within 0\.3 s: something still uses") as caught:
        helper.write(blocks, "x", 0.3)
    assert time.monotonic() - start >= 0.3
    assert caught.value.pid == worker_module._abandoned[0].pid
    with pytest.raises(StuckError, match="reading"):
        helper.read(blocks, 0.1)
    (tmp_path / "attribute").write_text("fine")
    assert helper.read(tmp_path / "attribute") == "fine"


def test_waiting_ends_when_the_caller_does_not_want_to_any_more(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "GRACE", 0.1)
    looks = itertools.count()
    with Worker(stop=lambda: next(looks) > 0) as helper:
        with pytest.raises(StuckError, match="given up"):
            helper.write(blocks, "x", 600)
        # What does not hang is done all the same.
        monkeypatch.setattr(worker_module, "GRACE", 60)
        (tmp_path / "attribute").touch()
        helper.write(tmp_path / "attribute", "x")
        assert (tmp_path / "attribute").read_text() == "x"


def test_helper_that_is_killed_is_a_failure(helper: Worker, blocks: Path, tmp_path: Path) -> None:
    helper.read(tmp_path / "none")
    process = helper._process
    assert process is not None
    timer = threading.Timer(0.05, process.kill)
    timer.start()
    with pytest.raises(OSError, match="killed") as caught:
        helper.write(blocks, "x", 600)
    assert caught.value.errno == errno.ECHILD
    timer.join()
    (tmp_path / "attribute").write_text("fine")
    assert helper.read(tmp_path / "attribute") == "fine"


_DIES = """
import fcntl, os, signal, sys
from pathlib import Path
from pyiommufd.host.worker import Worker

lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
helper = Worker(keep=[lock])
helper._answer = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
helper.write(Path(sys.argv[2]), "x")
"""


def test_lock_is_held_until_what_a_killed_process_had_asked_for_is_done(tmp_path: Path) -> None:
    """Nobody recovers what is still being changed."""
    lock, pipe = tmp_path / "lock", tmp_path / "pipe"
    os.mkfifo(pipe)
    dead = subprocess.run([sys.executable, "-c", _DIES, lock, pipe], stderr=subprocess.PIPE, check=False)
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()
    with open(lock, "r+b") as file:
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.1)
        assert pipe.read_text() == "x"
        fcntl.flock(file, fcntl.LOCK_EX)  # it has ended


def test_without_an_interpreter_to_start(helper: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    (tmp_path / "attribute").touch()
    helper.write(tmp_path / "attribute", "x")
    assert helper.read(tmp_path / "attribute") == "x"
    assert helper._process is None


def test_writer_whose_process_is_gone_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process had asked for must not happen after its claim has been recovered."""
    path = tmp_path / "attribute"
    path.touch()
    # A Python that takes its time to start, as on a busy machine: until it is told to go on.
    slow = tmp_path / "python"
    wait = "touch started\nwhile ! [ -e go ]; do sleep 0.01; done"
    slow.write_text(f'#!/bin/sh\n{wait}\n"{sys.executable}" "$@"\necho "$?" > ended\n')
    slow.chmod(0o755)
    child = os.fork()
    if not child:
        monkeypatch.setattr(sys, "executable", str(slow))
        os.chdir(tmp_path)
        Worker().write(path, "late")
        os._exit(0)
    until((tmp_path / "started").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "go").touch()
    until((tmp_path / "ended").exists)
    assert path.read_text() == ""
