"""Locks that tell which claims have a living process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd.host.claims import claim_locks


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The files of two records."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for path in (one, other):
        path.touch()
    yield one, other
    for path in (one, other):
        claim_locks.release(path)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def in_child(work: Callable[[], Any]) -> Any:
    """What some work in a forked child comes to: true or not."""
    child = os.fork()
    if not child:
        os._exit(bool(work()))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_claim_is_held_until_it_is_let_go(files: tuple[Path, Path]) -> None:
    one, other = files
    before = open_files()
    assert not claim_locks.is_held(one)
    claim_locks.acquire(one)
    claim_locks.acquire(other)
    for _ in range(2):
        # Neither look loses the locks, from here or from another process.
        assert claim_locks.is_held(one)
        assert in_child(lambda: claim_locks.is_held(one))
    claim_locks.release(one)
    claim_locks.release(one)
    assert not claim_locks.is_held(one)
    assert in_child(lambda: claim_locks.is_held(other))
    claim_locks.release(other)
    assert not in_child(lambda: claim_locks.is_held(other))
    assert open_files() == before


def test_lock_dies_with_its_process_and_not_with_a_child_of_it(files: tuple[Path, Path]) -> None:
    one, _ = files
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        claim_locks.acquire(one)
        if not os.fork():
            os.write(writer, f"{os.getpid()}\n".encode())
        signal.pause()
    os.close(writer)
    with open(reader) as pipe:
        grandchild = int(pipe.readline())
    try:
        assert claim_locks.is_held(one)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # Its own child is still there, with a copy of the fd.
        assert not claim_locks.is_held(one)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_forked_child_has_none_of_it(files: tuple[Path, Path]) -> None:
    one, _ = files
    claim_locks.acquire(one)

    def child() -> bool:
        open_ones = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and fd.readlink() == one]
        return not open_ones and claim_locks.is_held(one)

    assert in_child(child)
    assert claim_locks.is_held(one)


def test_lock_of_a_file_that_was_replaced_is_taken_again(files: tuple[Path, Path]) -> None:
    one, other = files
    before = open_files()
    claim_locks.acquire(one)
    other.replace(one)
    assert not in_child(lambda: claim_locks.is_held(one))
    claim_locks.acquire(one)
    assert in_child(lambda: claim_locks.is_held(one))
    claim_locks.release(one)
    assert not claim_locks.is_held(one)
    assert open_files() == before
