"""Page requests of mock devices, and what comes of their answers."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import (
    HWPT,
    IOMMUFD,
    ClosedError,
    Device,
    FaultQueue,
    ForkedError,
    InUseError,
    IoctlError,
    PagePermission,
    PageRequest,
    UnsupportedError,
    uapi,
)
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, fail_each


@pytest.fixture
def queue(mock: MockIOMMUFD) -> FaultQueue:
    return mock.alloc_fault_queue()


@pytest.fixture
def faulting(mock: MockIOMMUFD, queue: FaultQueue) -> MockDevice:
    """A device on a page table whose page requests arrive in the queue."""
    ioas = mock.alloc_ioas()
    device = mock.mock_device(ioas)
    hwpt = device.alloc_hwpt(ioas, fault_queue=queue)
    assert (hwpt.fault_queue, hwpt.flags) == (queue, uapi.IOMMU_HWPT_FAULT_ID_VALID)
    device.replace(hwpt)
    return device


def test_a_request_arrives_and_is_answered_once(mock: MockIOMMUFD, faulting: MockDevice, queue: FaultQueue) -> None:
    with pytest.raises(TimeoutError, match="no page request"):
        queue.read(0)
    faulting.page_fault(0x7000, group=3, permissions=PagePermission.WRITE)
    group = queue.read(120)
    assert (group.number, group.requests) == (3, (PageRequest(faulting, None, PagePermission.WRITE, 0x7000, 0),))
    assert list(queue.unanswered) == [group]
    with pytest.raises(ValueError, match="not read from this FaultQueue"):
        mock.alloc_fault_queue().respond(group)
    queue.respond(group)
    assert list(queue.unanswered) == []
    with pytest.raises(ValueError, match="it has been answered"):
        queue.respond(group, success=False)


def test_requests_come_in_their_order(faulting: MockDevice, queue: FaultQueue) -> None:
    for number in range(100):
        faulting.page_fault(number << 12, group=number)
    groups = [queue.read(120) for _ in range(100)]
    addresses = [(group.number, request.address) for group in groups for request in group]
    assert addresses == [(number, number << 12) for number in range(100)]
    for number, group in enumerate(groups[:50]):
        queue.respond(group, success=bool(number % 2))
    queue.respond(*groups[50:])
    with pytest.raises(TimeoutError):
        queue.read(0)


def test_requests_of_a_pasid(mock: MockIOMMUFD, queue: FaultQueue) -> None:
    ioas = mock.alloc_ioas()
    device = mock.mock_device(ioas, pasid=True)
    plain = device.alloc_hwpt(ioas, pasid=True)
    device.replace(plain)
    hwpt = device.alloc_hwpt(ioas, pasid=True, fault_queue=queue)
    device.attach(hwpt, pasid=5)
    device.page_fault(0x1000)  # its own table has no queue
    device.page_fault(0x2000, pasid=5, permissions=PagePermission.READ | PagePermission.PRIVILEGED)
    (request,) = queue.read(0)
    assert (request.device, request.pasid, request.address) == (device, 5, 0x2000)
    assert request.permissions == PagePermission.READ | PagePermission.PRIVILEGED
    queue.respond(*queue.unanswered)
    device.detach(5)


def test_every_failure_of_a_read_or_answer_leaves_the_group(faulting: MockDevice, queue: FaultQueue) -> None:
    """To the next read, or as one that is unanswered. Most of them the kernel gets around."""
    for number, attempt in enumerate(fail_each()):
        faulting.page_fault(number << 12, group=number)
        numbers: list[int] = []
        with attempt as failure, contextlib.suppress(IoctlError):
            queue.respond(group := queue.read(0))
            numbers.append(group.number)
        with contextlib.suppress(TimeoutError):
            queue.read(0)
        numbers += [group.number for group in queue.unanswered]
        queue.respond(*queue.unanswered)
        assert numbers == [number]
    assert number > 0
    assert not failure.injected


def test_a_group_that_there_is_no_room_for_stays(faulting: MockDevice, queue: FaultQueue) -> None:
    """So reads begin with the smallest room, and take one group each (Linux 7.3, iommufd_fault_fops_read)."""
    assert os.read(queue.fileno(), 0) == b""
    faulting.page_fault(0x1000, group=1)
    with pytest.raises(OSError, match="Invalid argument"):
        os.read(queue.fileno(), 0)
    assert queue.read(0).number == 1


def test_a_detached_device_is_refused_by_the_kernel(faulting: MockDevice, queue: FaultQueue) -> None:
    """Which then has other groups by the same cookies: an answer to the older one would be one to the newer."""
    hwpt = faulting.page_table
    assert hwpt is not None
    faulting.page_fault(0x1000, group=1)
    older = queue.read(0)
    faulting.detach()
    faulting.attach(hwpt)
    assert list(queue.unanswered) == [older]
    faulting.page_fault(0x2000, group=2)
    newer = queue.read(0)
    assert newer.cookie == older.cookie
    assert list(queue.unanswered) == [newer]
    with pytest.raises(ValueError, match="the kernel has refused the requests itself"):
        queue.respond(older)
    queue.respond(newer)


def test_answers_are_taken_in_order_up_to_one_that_is_refused(
    mock: MockIOMMUFD, faulting: MockDevice, queue: FaultQueue
) -> None:
    hwpt = faulting.page_table
    assert isinstance(hwpt, HWPT)
    other = mock.mock_device(hwpt.ioas)
    other.replace(other.alloc_hwpt(hwpt.ioas, fault_queue=queue))
    for number, device in enumerate((faulting, other, faulting, faulting)):
        device.page_fault(0, group=number)
    groups = [queue.read(0) for _ in range(4)]
    assert [group.requests[0].device for group in groups] == [faulting, other, faulting, faulting]
    other.detach()
    with pytest.raises(IoctlError, match="number 2 of 4: 1 answered, 2 not") as caught:
        queue.respond(*groups, success=False)
    assert (caught.value.request, caught.value.errno) == ("write", errno.EINVAL)
    assert "was detached or moved" in str(caught.value)
    assert list(queue.unanswered) == groups[2:]
    queue.respond(*groups[2:])
    assert list(queue.unanswered) == []


def test_what_a_handler_did_not_answer_is_not_lost(faulting: MockDevice, queue: FaultQueue) -> None:
    """The program's own code raises between read and answer, and another part of it goes on."""
    faulting.page_fault(0x3000)

    def serve() -> None:
        queue.read(0)
        raise LookupError

    with pytest.raises(LookupError):
        serve()
    (group,) = queue.unanswered
    assert group.requests[0].address == 0x3000
    queue.respond(group, success=False)


def test_a_page_table_keeps_its_queue(mock: MockIOMMUFD, faulting: MockDevice, queue: FaultQueue) -> None:
    hwpt = faulting.page_table
    assert hwpt is not None
    assert queue.users == (hwpt,)
    with pytest.raises(InUseError, match="HWPT"):
        queue.close()
    faulting.page_fault(0x9000)
    group = queue.read(120)  # not answered: the kernel does it
    faulting.detach()
    hwpt.close()
    queue.close()
    queue.close()
    assert queue not in mock.objects
    for call in (queue.fileno, queue.read, lambda: queue.respond(group)):
        with pytest.raises(ClosedError):
            call()


def test_wrong_queues(mock: MockIOMMUFD, iommufd: IOMMUFD, device: Device) -> None:
    ioas = mock.alloc_ioas()
    mock_device = mock.mock_device(ioas)
    with pytest.raises(ValueError, match="another IOMMUFD"):
        mock_device.alloc_hwpt(ioas, fault_queue=iommufd.alloc_fault_queue())
    with pytest.raises(TypeError, match="FaultQueue"):
        mock_device.alloc_hwpt(ioas, fault_queue=7)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="nest_parent, fault_queue"):
        mock_device.alloc_hwpt(ioas, fault_queue=mock.alloc_fault_queue(), nest_parent=True)
    closed = mock.alloc_fault_queue()
    closed.close()
    with pytest.raises(ClosedError):
        mock_device.alloc_hwpt(ioas, fault_queue=closed)


def test_a_child_closes_its_copy(
    faulting: MockDevice, queue: FaultQueue, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    def child() -> str:
        try:
            queue.fileno()
        except ForkedError:
            queue.close()
            return "forked"
        return "used"

    assert in_child(child) == "forked"
    faulting.page_fault(0x1000)
    queue.respond(queue.read(120))


def test_dropped_unclosed_it_warns(in_child: Callable[[Callable[[], Any]], Any]) -> None:
    def child() -> list[str]:
        iommufd = IOMMUFD()
        iommufd.alloc_fault_queue()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del iommufd
            gc.collect()
        return sorted(str(one.message)[:16] for one in seen if one.category is ResourceWarning)

    assert in_child(child) == ["unclosed <FaultQ", "unclosed <IOMMUF"]
