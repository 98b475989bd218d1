"""Steps of the twins of nested page tables and vIOMMUs: requests by id, page requests, and invalidation."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    VIOMMU,
    FaultQueue,
    InvalidationError,
    IoctlError,
    NestedHWPT,
    PagePermission,
    PageRequest,
    RawData,
    uapi,
)
from pyiommufd.testing.mock import MockDevice, commands
from pyiommufd.uapi import raw
from tests.conformance.iommufd.steps import issue, refused
from tests.mock_data import stage1

NO_FLAG = 1 << 31
"""A flag that no request has."""
NO_ID = 0xFFFF_FFFF
"""The id of no object."""
WRONG_FLAGS = 0xFFFF_FFFF
"""The flags of an invalidation that the mock IOMMU refuses."""


def alloc_by_ids(iommufd: IOMMUFD, device_id: int, pt_id: int, **fields: int) -> None:
    """IOMMU_HWPT_ALLOC with good data of a stage 1, unless the fields say otherwise."""
    data = bytearray(bytes(stage1()))
    given = {"data_type": stage1().type, "data_len": len(data), "data_uptr": raw.address_of(data)} | fields
    issue(iommufd, uapi.IOMMU_HWPT_ALLOC, "iommu_hwpt_alloc", dev_id=device_id, pt_id=pt_id, **given)


def check_page_request(device: MockDevice, queue: FaultQueue, pasid: int = 1) -> None:
    """A page request of the device arrives in the queue, is answered, and is over then."""
    wanted = PagePermission.READ | PagePermission.WRITE
    device.page_fault(0xDEADBEAF, pasid=pasid, group=2, permissions=wanted)
    group = queue.read(timeout=0)
    assert (group.number, group.requests) == (2, (PageRequest(device, pasid, wanted, 0xDEADBEAF, 0),))
    queue.respond(group)
    assert queue.unanswered == ()
    with pytest.raises(TimeoutError):
        queue.read(timeout=0)


@dataclass(frozen=True)
class Cache:
    """What is invalidated by entries.

    Attributes:
        table: The nested page table whose I/O TLB it is, or the vIOMMU whose device's cache.
        entry: Makes what is given for an entry, by its number and flags.
        holds: Whether an entry has a value.
        default: The value of an entry that was not invalidated.
        too_long: The errno where what is given for an entry has a byte more, which is not 0.
    """

    table: NestedHWPT | VIOMMU
    entry: Callable[..., RawData]
    holds: Callable[[int, int], bool]
    default: int
    too_long: int

    def check(self, *invalidated: int) -> None:
        """These entries have been invalidated, and no others."""
        for number in range(commands.CACHE_ENTRIES):
            assert self.holds(number, 0 if number in invalidated else self.default), f"entry {number}"

    def request(self, memory: bytearray | None, **fields: int) -> tuple[int, int]:
        """IOMMU_HWPT_INVALIDATE of one good entry, unless the fields say otherwise.

        Returns:
            The errno, 0 where it succeeds, and how many entries were done.
        """
        good = self.entry(0)
        given: dict[str, Any] = {"hwpt_id": self.table.id, "data_type": good.type, "entry_num": 1}
        given |= {"entry_len": len(good.data), "data_uptr": 0 if memory is None else raw.address_of(memory)}
        command = raw.struct("iommu_hwpt_invalidate", **(given | fields))
        try:
            raw.ioctl(self.table.iommufd.fileno(), uapi.IOMMU_HWPT_INVALIDATE, command)
        except IoctlError as error:
            return error.errno or 0, command.entry_num
        return 0, command.entry_num

    def refuse(self, code: int, entries: Sequence[RawData], done: int = 0) -> None:
        """The kernel refuses this, after so many entries."""
        with pytest.raises(InvalidationError) as caught:
            self.table.invalidate(entries)
        assert (caught.value.errno, caught.value.done) == (code, done)

    def check_refusals(self) -> None:
        """What is no invalidation is refused, and nothing is invalidated."""
        good = self.entry(0)
        assert self.request(bytearray(good.data), entry_num=0) == (0, 0)
        self.table.invalidate([])
        self.refuse(errno.EINVAL, [RawData(good.type + 1, good.data)])
        self.refuse(self.too_long, [RawData(good.type, good.data + b"\1")])
        self.refuse(errno.EINVAL, [RawData(good.type, good.data[:1])])
        self.refuse(errno.EOPNOTSUPP, [self.entry(0, flags=WRONG_FLAGS)])
        assert self.request(None) == (errno.EINVAL, 0)
        assert self.request(bytearray(good.data), entry_len=0) == (errno.EINVAL, 0)
        self.refuse(errno.EINVAL, [self.entry(commands.CACHE_ENTRIES)])
        self.check()

    def check_effects(self) -> None:
        """What comes before a wrong entry is invalidated, then others one by one, and all of them."""
        self.refuse(errno.EOPNOTSUPP, [self.entry(0), self.entry(1, flags=WRONG_FLAGS)], done=1)
        self.check(0)
        self.refuse(errno.EINVAL, [self.entry(0), self.entry(commands.CACHE_ENTRIES)], done=1)
        self.check(0)
        self.table.invalidate([self.entry(1)])
        self.check(0, 1)
        self.table.invalidate([self.entry(2), self.entry(3)])
        self.check(0, 1, 2, 3)


def check_unknown_queue(device: MockDevice, place: int) -> None:
    """A page table with page requests wants a queue that there is."""
    with refused(errno.ENOENT):
        alloc_by_ids(device.iommufd, device.id, place, flags=uapi.IOMMU_HWPT_FAULT_ID_VALID, fault_id=NO_ID)
