"""Reads of page requests: groups of any size, and interrupted ones. No device here makes groups that large."""

from __future__ import annotations

import contextlib
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from pyiommufd.kernel.pagetables.fault_queue import FaultQueue, PageRequest
from pyiommufd.uapi import ioctls
from tests.opcodes import opcodes

REQUEST = struct.Struct("=6IQ2I")  # struct iommu_hwpt_pgfault


class Queue(FaultQueue):
    """A queue without a kernel, which gives whole groups alone, as iommufd_fault_fops_read of Linux 7.3 does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *groups: int) -> None:
        lock = contextlib.nullcontext()
        self._iommufd: Any = SimpleNamespace(_lock=lock, _context=SimpleNamespace(devices=lambda: ()))
        super().__init__(SimpleNamespace(_file=ioctls.new_file(), **vars(self._iommufd)))  # type: ignore[arg-type]
        self._queue: Any = SimpleNamespace(_live=lambda: None, close=lambda: None)
        self.waiting = list(groups)
        self.rooms: list[int] = []
        self.interrupt = False
        monkeypatch.setattr(ioctls, "file_readinto", self.readinto)
        monkeypatch.setattr(ioctls, "file_readable", lambda file: bool(self.waiting))

    def readinto(self, file: object, memory: bytearray, done: ioctls.Cell) -> None:
        self.rooms.append(room := len(memory) // REQUEST.size)
        at = 0
        while self.waiting and self.waiting[0] <= room - at // REQUEST.size:
            for number in range(size := self.waiting.pop(0)):
                REQUEST.pack_into(memory, at, 0, 0, 0, size, 1, 0, 4096 * number, 0, size)
                at += REQUEST.size
        done[0] = at
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt


@pytest.mark.parametrize("requests", [1, 64, 65, 1000])
def test_a_group_comes_whole(monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    queue = Queue(monkeypatch, requests)
    got = [queue.read(0) for _ in range(requests)]
    assert [request.address for request in got] == [4096 * number for number in range(requests)]
    with pytest.raises(TimeoutError):
        queue.read(0)
    assert queue.rooms[0] == 64


def test_groups_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, 2, 3, 70, 1)
    assert [queue.read(0).cookie for _ in range(76)] == [2] * 2 + [3] * 3 + [70] * 70 + [1]


def test_an_interrupted_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises when the kernel has given the requests away: nobody else could answer them."""
    queue = Queue(monkeypatch, 3)
    queue.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        queue.read(0)
    assert [queue.read(0).address for _ in range(3)] == [0, 4096, 8192]
    with pytest.raises(TimeoutError):
        queue.read(0)


def test_a_signal_handler_that_reads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request is told once, to one of the two."""
    files = ("pyiommufd/kernel/pagetables/fault_queue.py",)
    got: list[PageRequest] = []

    def act() -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                got.append(queue.read(0))

    def handler() -> None:
        got.append(queue.read(0)) if queue.waiting else act()

    queue = Queue(monkeypatch, 1, 2, 70)
    every, _ = opcodes(act, files)
    for stop in range(0, every, every // 200):
        got.clear()
        queue = Queue(monkeypatch, 1, 2, 70)
        opcodes(act, files, stop, handler, raises=False)
        assert sorted(request.cookie for request in got) == [1] + 2 * [2] + 70 * [70]
        assert len({(request.cookie, request.address) for request in got}) == 73


def test_what_is_no_request_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="PageRequest, not int"):
        Queue(monkeypatch).respond(5)  # type: ignore[arg-type]
