"""Page requests of mock devices, and what comes of their answers."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    ClosedError,
    Device,
    FaultQueue,
    ForkedError,
    InUseError,
    PagePermission,
    PageRequest,
    UnsupportedError,
    uapi,
)
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD
from tests.guest.threads import ends_of_waiters


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


def test_a_request_arrives_and_is_answered_once(faulting: MockDevice, queue: FaultQueue) -> None:
    with pytest.raises(TimeoutError, match="no page request"):
        queue.read(0)
    faulting.page_fault(0x7000, group=3, permissions=PagePermission.WRITE)
    group = queue.read(120)
    assert (group.number, group.requests) == (3, (PageRequest(faulting, None, PagePermission.WRITE, 0x7000, 0),))
    assert list(queue.unanswered) == [group]
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


def test_who_waits_is_woken(faulting: MockDevice, queue: FaultQueue) -> None:
    timer = threading.Timer(0.2, faulting.page_fault, [0x5000])
    timer.start()
    (request,) = group = queue.read(120)
    timer.join()
    assert request.address == 0x5000
    queue.respond(group)


def test_close_wakes_who_waits(mock: MockIOMMUFD, queue: FaultQueue) -> None:
    assert ends_of_waiters(queue.read, lambda: queue._queue._file.users == 3, queue.close) == [ClosedError] * 3
    assert mock.objects == ()


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
