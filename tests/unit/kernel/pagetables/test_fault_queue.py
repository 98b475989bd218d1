"""Reads of page requests: groups of any size, and interrupted ones. No device here makes groups of more than one."""

from __future__ import annotations

import contextlib
import errno
import struct
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from pyiommufd import PagePermission, PageRequest, PageRequestGroup, uapi
from pyiommufd.errors import ioctl_error
from pyiommufd.kernel.pagetables.fault_queue import FaultQueue
from pyiommufd.uapi import ioctls
from tests.opcodes import opcodes

REQUEST = struct.Struct("=6IQ2I")  # struct iommu_hwpt_pgfault
FILES = ("pyiommufd/kernel/record_queue.py", "pyiommufd/kernel/waitable.py", "pyiommufd/kernel/pagetables/")


class Queue(FaultQueue):
    """A queue without a kernel, which gives and takes as iommufd_fault_fops_read and _write of Linux 7.3 do.

    Args:
        groups: How many requests each group has that waits in it.
        says: Whether a read that has too little room for a group is EINVAL, as in Linux 7.3; else it reads nothing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *groups: int, says: bool = True) -> None:
        lock = contextlib.nullcontext()
        self._iommufd: Any = SimpleNamespace(_lock=lock, _context=SimpleNamespace(devices=lambda: ()))
        super().__init__(SimpleNamespace(_file=ioctls.new_file(), **vars(self._iommufd)))  # type: ignore[arg-type]
        self._queue: Any = SimpleNamespace(_live=lambda: None, _file=None, close=lambda: None)
        self.waiting = list(enumerate(groups, 1))  # cookie, requests
        self.given: set[int] = set()
        self.answers: list[tuple[int, int]] = []
        self.interrupt = False
        self.says = says
        monkeypatch.setattr(ioctls, "file_readinto", self.readinto)
        monkeypatch.setattr(ioctls, "file_readable", lambda file: bool(self.waiting))
        monkeypatch.setattr(ioctls, "file_write", self.write)

    def readinto(self, file: object, memory: bytearray, done: ioctls.Cell) -> None:
        room, at = len(memory) // REQUEST.size, 0
        while self.waiting and self.waiting[0][1] <= room - at // REQUEST.size:
            cookie, size = self.waiting.pop(0)
            self.given.add(cookie)
            for number in range(1, size + 1):
                flags = uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE if number == size else 0
                REQUEST.pack_into(memory, at, flags, 0, 0, 100 + cookie, 1, 0, 4096 * number, 0, cookie)
                at += REQUEST.size
        if self.says and self.waiting and not at:
            raise ioctl_error("read", errno.EINVAL)
        done[0] = at
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt

    def write(self, file: object, data: bytes) -> int:
        done = 0
        for cookie, code in struct.iter_unpack("=2I", data):
            if cookie not in self.given or code > 1:
                break
            self.given.remove(cookie)
            self.answers.append((cookie, code))
            done += 8
        if not done:
            raise ioctl_error("write", errno.EINVAL)
        return done


def cookies(groups: Any) -> list[int]:
    return [group.cookie for group in groups]


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("requests", [1, 2, 64, 1000])
def test_a_group_comes_whole_and_alone(monkeypatch: pytest.MonkeyPatch, requests: int, says: bool) -> None:
    queue = Queue(monkeypatch, requests, 1, 1, says=says)
    group = queue.read(0)
    assert [request.address for request in group] == [4096 * number for number in range(1, requests + 1)]
    assert (group.number, group.cookie) == (101, 1)
    assert queue.waiting == [(2, 1), (3, 1)]
    queue.respond(group)
    assert queue.answers == [(1, uapi.IOMMUFD_PAGE_RESP_SUCCESS)]


def test_a_group_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a wait that never sleeps: the queue is readable."""
    monkeypatch.setattr("pyiommufd.kernel.record_queue._LARGEST", 8)
    with pytest.raises(OSError, match="more than 320 bytes") as caught:
        Queue(monkeypatch, 9).read(0)
    assert caught.value.errno == errno.EINVAL
    assert len(Queue(monkeypatch, 8).read(0).requests) == 8


def test_groups_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, 2, 3, 70, 1)
    groups = [queue.read(0) for _ in range(4)]
    assert [(group.cookie, len(group.requests)) for group in groups] == [(1, 2), (2, 3), (3, 70), (4, 1)]
    with pytest.raises(TimeoutError, match="no page request"):
        queue.read(0)


def test_where_another_process_took_a_large_group_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for more than one small group then: they are handed out one by one, in order."""
    queue = Queue(monkeypatch, 3, 1, 2, 1)
    queue.readinto(None, bytearray(3 * REQUEST.size), ioctls.new_cell("uint64_t"))
    queue._room = 4 * REQUEST.size
    assert [len(queue.read(0).requests) for _ in range(3)] == [1, 2, 1]
    assert queue.waiting == []


def test_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, other = Queue(monkeypatch), Queue(monkeypatch, 1, 1)
    first, second = other.read(0), other.read(0)
    with pytest.raises(TypeError, match="PageRequestGroup, not int"):
        other.respond(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="PageRequestGroup, not PageRequest"):
        other.respond(first.requests[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="success is True or False, not 2"):
        other.respond(first, success=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not read from this Queue"):
        queue.respond(first)
    with pytest.raises(ValueError, match="given twice"):
        other.respond(first, second, first)
    made_up = PageRequestGroup(first.requests, first.number, first.cookie)
    with pytest.raises(ValueError, match="not read from this Queue"):
        other.respond(made_up)
    assert other.answers == []
    other.respond(second, first, success=False)
    other.respond()
    assert other.answers == [(2, uapi.IOMMUFD_PAGE_RESP_INVALID), (1, uapi.IOMMUFD_PAGE_RESP_INVALID)]
    with pytest.raises(ValueError, match="it has been answered"):
        other.respond(first)


def test_an_answer_is_taken_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, 1, 1, 1, 1)
    groups = [queue.read(0) for _ in range(4)]
    queue.given.remove(3)  # as the kernel does when the device is detached
    with pytest.raises(OSError, match="number 3 of 4: 2 answered, 1 not") as caught:
        queue.respond(*groups)
    assert caught.value.errno == errno.EINVAL
    assert queue.answers == [(1, 0), (2, 0)]
    assert cookies(queue.unanswered) == [4]
    with pytest.raises(ValueError, match="the kernel has refused"):
        queue.respond(groups[2])
    queue.respond(*queue.unanswered)
    assert queue.unanswered == ()


def test_a_cookie_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has refused the older group: an answer to it would be one to the newer."""
    queue = Queue(monkeypatch, 1)
    older = queue.read(0)
    queue.waiting = [(1, 2)]
    newer = queue.read(0)
    assert newer.cookie == older.cookie
    assert newer != older
    assert queue.unanswered == (newer,)
    with pytest.raises(ValueError, match="the kernel has refused the requests itself"):
        queue.respond(older)
    assert queue.answers == []
    queue.respond(newer)
    assert queue.answers == [(1, 0)]


def test_an_interrupted_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises when the kernel has given the requests away: nobody else could answer them."""
    queue = Queue(monkeypatch, 3)
    queue.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        queue.read(0)
    assert queue.unanswered == ()
    assert [request.address for request in queue.read(0)] == [4096, 8192, 12288]
    with pytest.raises(TimeoutError):
        queue.read(0)


def test_an_exception_at_any_step_of_a_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken from the kernel is among the unanswered, or comes with the next read; never both."""
    every, _ = opcodes(lambda: Queue(monkeypatch, 1, 3).read(0), FILES)
    seen = set()
    for stop in range(every):
        queue = Queue(monkeypatch, 1, 3)
        opcodes(partial(queue.read, 0), FILES, stop)
        kept = cookies(queue.unanswered)
        later = []
        with contextlib.suppress(TimeoutError):
            while True:
                later.append(queue.read(0).cookie)
        assert sorted(kept + later) == [1, 2], stop
        assert cookies(queue.unanswered) == [1, 2]
        seen.add((*kept,))
    assert seen == {(), (1,)}


def test_an_exception_at_any_step_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups are answered once, at the latest when it is tried again; an answer that was taken may raise then."""
    queue = Queue(monkeypatch, 1, 1, 1)
    every, _ = opcodes(partial(queue.respond, *[queue.read(0) for _ in range(3)]), FILES)
    for stop in range(every):
        queue = Queue(monkeypatch, 1, 1, 1)
        groups = [queue.read(0) for _ in range(3)]
        opcodes(partial(queue.respond, *groups), FILES, stop)
        for group in queue.unanswered:
            with contextlib.suppress(OSError):
                queue.respond(group)
        assert sorted(queue.answers) == [(1, 0), (2, 0), (3, 0)]
        assert queue.unanswered == ()


def test_a_signal_handler_that_reads_and_answers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group is told once, to one of the two, and what the handler answers is not unanswered."""
    got: list[PageRequestGroup] = []

    def act() -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                got.append(queue.read(0))

    def handler() -> None:
        with contextlib.suppress(TimeoutError):
            group = queue.read(0)
            queue.respond(group)
            answered.append(group)

    answered: list[PageRequestGroup] = []
    queue = Queue(monkeypatch, 1, 2, 3)
    every, _ = opcodes(act, FILES)
    for stop in range(every):
        got.clear()
        answered.clear()
        queue = Queue(monkeypatch, 1, 2, 3)
        opcodes(act, FILES, stop, handler, raises=False)
        assert sorted(cookies(got + answered)) == [1, 2, 3], stop
        assert set(queue.unanswered) == set(got), stop


def test_requests_say_what_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    valid, last = uapi.IOMMU_PGFAULT_FLAGS_PASID_VALID, uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE
    device: Any = SimpleNamespace(id=7, name="seven")
    queue._iommufd._context.devices = lambda: (device,)
    data = REQUEST.pack(valid, 7, 5, 9, 3, 0, 0x1000, 64, 4)
    data += REQUEST.pack(valid | last, 8, 5, 9, 0x80, 0, 0x2000, 0, 4)
    (group,) = queue._decode(data)
    assert (group.number, group.cookie) == (9, 4)
    assert group.requests == (
        PageRequest(device, 5, PagePermission.READ | PagePermission.WRITE, 0x1000, 64),
        PageRequest(None, 5, PagePermission(0x80), 0x2000, 0),
    )
    (plain,) = queue._decode(REQUEST.pack(last, 7, 0, 9, 0, 0, 0, 0, 4))
    assert plain.requests == (PageRequest(device, None, PagePermission(0), 0, 0),)
