"""Locks that tell which claims have a living process."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyiommufd.host.claims import living

ONE, OTHER = uuid.uuid4().hex, uuid.uuid4().hex


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def in_child(work: Callable[[], Any]) -> Any:
    """What some work in a forked child comes to: true or not."""
    child = os.fork()
    if not child:
        os._exit(bool(work()))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_claim_is_held_until_it_is_let_go(tmp_path: Path) -> None:
    before = open_files()
    assert not living.is_held(tmp_path, ONE)
    living.hold(tmp_path, ONE)
    living.hold(tmp_path, OTHER)
    for _ in range(2):
        # Neither look loses the locks, from here or from another process.
        assert living.is_held(tmp_path, ONE)
        assert in_child(lambda: living.is_held(tmp_path, ONE))
    living.let_go(tmp_path, ONE)
    living.let_go(tmp_path, ONE)
    assert not living.is_held(tmp_path, ONE)
    assert in_child(lambda: living.is_held(tmp_path, OTHER))
    living.let_go(tmp_path, OTHER)
    assert not in_child(lambda: living.is_held(tmp_path, OTHER))
    assert open_files() == before


def test_lock_dies_with_its_process_and_not_with_a_child_of_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        living.hold(tmp_path, ONE)
        if not os.fork():
            os.write(writer, f"{os.getpid()}\n".encode())
        signal.pause()
    os.close(writer)
    with open(reader) as pipe:
        grandchild = int(pipe.readline())
    try:
        assert living.is_held(tmp_path, ONE)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # Its own child is still there, with a copy of the fd.
        assert not living.is_held(tmp_path, ONE)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_forked_child_has_none_of_it(tmp_path: Path) -> None:
    living.hold(tmp_path, ONE)
    before = open_files()

    def child() -> bool:
        return open_files() == before - 1 and living.is_held(tmp_path, ONE)

    assert in_child(child)
    assert living.is_held(tmp_path, ONE)
    living.let_go(tmp_path, ONE)
