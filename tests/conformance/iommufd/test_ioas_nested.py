"""Twins of the fixture ``iommufd_ioas``: page tables nested in others."""

from __future__ import annotations

import errno
from functools import partial

import pytest

from pyiommufd import (
    HWPT,
    BusyError,
    FaultQueue,
    InUseError,
    NestedHWPT,
    NotFoundError,
    RawData,
    UnsupportedError,
    uapi,
)
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.by_id import destroy
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.conftest import Space
from tests.conformance.iommufd.nested import Cache, alloc_by_ids, check_page_request, check_unknown_queue
from tests.conformance.iommufd.steps import PAGE, refused
from tests.mock_data import iotlb_entry, stage1

MOST_ENTRIES = 1 << 19


@twin("iommufd_ioas.alloc_hwpt_nested", Route.RAW)
def test_alloc_hwpt_nested(space: Space) -> None:
    if not space.devices:
        check_without_device(space)
        return
    iommufd, ioas, device = space.iommufd, space.ioas, space.devices[-1]
    queue = iommufd.alloc_fault_queue()
    check_wrong_parents(space, device, queue)
    parent = device.alloc_hwpt(ioas, nest_parent=True)
    plain = device.alloc_hwpt(ioas)
    check_wrong_tables(iommufd, device, parent, plain)

    first, second = (parent.alloc_nested(stage1()) for _ in range(2))
    check_unknown_queue(device, parent.id)
    faulting = parent.alloc_nested(stage1(), fault_queue=queue)
    for nested in (first, second):
        cache_of(nested).check()
    with refused(errno.EINVAL):
        alloc_by_ids(iommufd, device.id, first.id)
    with pytest.raises(BusyError):
        destroy(iommufd, parent.id)

    check_invalidation(parent, first, second)
    check_attachments(device, first, second, faulting, queue)

    device.replace(parent)
    second.close()
    faulting.close()
    device.replace(ioas)
    parent.close()
    plain.close()
    queue.close()
    for gone in (first, second, faulting, parent, plain, queue):
        with pytest.raises(NotFoundError):
            destroy(iommufd, gone.id)


def check_without_device(space: Space) -> None:
    """Nothing is made for a device that there is not, and nothing moves it."""
    iommufd = space.iommufd
    with pytest.raises(NotFoundError):
        alloc_by_ids(iommufd, 0, space.ioas.id, data_type=0, data_len=0, data_uptr=0)
    for _ in range(2):
        with pytest.raises(NotFoundError):
            alloc_by_ids(iommufd, 0, 0)
        with pytest.raises(NotFoundError):
            commands.mock_domain_replace(iommufd.fileno(), 0, 0)


def check_wrong_parents(space: Space, device: MockDevice, queue: FaultQueue) -> None:
    """An address space is no device, nor the other way round; and a parent has no page requests."""
    no_data = {"data_type": 0, "data_len": 0, "data_uptr": 0}
    with pytest.raises(NotFoundError):
        alloc_by_ids(space.iommufd, space.ioas.id, device.id, **no_data)
    with refused(errno.EINVAL):
        alloc_by_ids(space.iommufd, device.id, device.id, **no_data)
    with pytest.raises(UnsupportedError) as caught:
        device.alloc_hwpt(space.ioas, nest_parent=True, fault_queue=queue)
    assert caught.value.errno == errno.EOPNOTSUPP


def check_wrong_tables(iommufd: MockIOMMUFD, device: MockDevice, parent: HWPT, plain: HWPT) -> None:
    """Data of no type, of another one, cut short, and none; a parent that is nested; in what is no parent."""
    good = stage1()
    for code, data in (
        (errno.EINVAL, RawData(0, good.data)),
        (errno.EOPNOTSUPP, RawData(good.type + 1, good.data)),
        (errno.EINVAL, RawData(good.type, good.data[:-1])),
    ):
        with refused(code):
            parent.alloc_nested(data, device=device)
    with refused(errno.EFAULT):
        alloc_by_ids(iommufd, device.id, parent.id, data_uptr=0)
    with refused(errno.EOPNOTSUPP):
        alloc_by_ids(iommufd, device.id, parent.id, flags=uapi.IOMMU_HWPT_ALLOC_NEST_PARENT)
    with refused(errno.EINVAL):
        plain.alloc_nested(good, device=device)
    assert (parent.users, plain.users) == ((), ())


def cache_of(nested: NestedHWPT) -> Cache:
    """The I/O TLB of a nested page table."""
    iommufd = nested.iommufd
    assert isinstance(iommufd, MockIOMMUFD)
    return Cache(nested, iotlb_entry, partial(iommufd.iotlb_holds, nested.id), commands.IOTLB_DEFAULT, errno.EINVAL)


def check_invalidation(parent: HWPT, first: NestedHWPT, second: NestedHWPT) -> None:
    cache = cache_of(first)
    memory = bytearray(iotlb_entry(0).data)
    # Nothing can be invalidated of stage 2.
    assert cache.request(memory, hwpt_id=parent.id) == (errno.EINVAL, 0)
    # An entry is no longer than a page, and there is a limit to how many there are.
    cache.refuse(errno.EINVAL, [RawData(iotlb_entry(0).type, bytes(PAGE + 1))])
    with pytest.raises(ValueError, match="too many"):
        first.invalidate([iotlb_entry(0)] * (MOST_ENTRIES + 1))
    assert cache.request(memory, entry_num=MOST_ENTRIES + 1) == (errno.EINVAL, 0)
    cache.check_refusals()
    cache.check_effects()
    cache_of(second).check()
    second.invalidate([iotlb_entry(0, flags=commands.INVALIDATE_ALL)])
    cache_of(second).check(0, 1, 2, 3)


def check_attachments(
    device: MockDevice, first: NestedHWPT, second: NestedHWPT, faulting: NestedHWPT, queue: FaultQueue
) -> None:
    """A page table that a device is on stays, and one that it has left can go."""
    for table in (first, second, faulting):
        device.replace(table)
        assert device.on(table.id)
        with pytest.raises(InUseError, match=device.name):
            table.close()
        with pytest.raises(BusyError):
            destroy(device.iommufd, table.id)
        if table is second:
            first.close()
    check_page_request(device, queue)
