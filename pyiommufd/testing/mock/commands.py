"""IOMMU_TEST_CMD: the numbers and layouts of the kernel's test ABI, and one function for each of its operations.

As of Linux 7.3 (drivers/iommu/iommufd/iommufd_test.h); the same since 6.7 as far as an older kernel has the operation,
and EOPNOTSUPP where it has not. The kernel changes this ABI as its own tests need.

Packed here with `struct`: the compiled extension, which is shipped to everyone, is to have nothing of an ABI that no
ordinary kernel offers; and cffi without a compiler would parse C at each import. Issued by `raw.ioctl`: what they
allocate counts for `fail_nth`.

Ids and addresses are plain integers; `MockIOMMUFD` and its objects are the high-level interface. Every function
raises `pyiommufd.errors.IoctlError` where the kernel refuses: `UnsupportedError` (ENOTTY) where it has no such command.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.uapi import raw

REQUEST = 0x3BA0
"""The request: ``_IO(';', 0xa0)``."""

APERTURE_START = 1 << 24
"""The first address that a mock device reaches."""
APERTURE_LAST = (1 << 31) - 1
"""The last address that it reaches."""
PAGE_SIZE = 2048
"""The smallest page of the mock IOMMU, in bytes: smaller than the processor's."""
HUGE_PAGE_SIZE = 512 * PAGE_SIZE
"""The page size of a page table made with `PageTableType.HUGE`, in bytes."""
MEMORY_LIMIT = 65536
"""What ``set_temp_memory_limit`` finds at boot, in bytes."""
SMALLEST_MEMORY_LIMIT = 12
"""The least that ``set_temp_memory_limit`` takes, on a 64-bit machine."""
PASID_WIDTH = 20
"""Bits of a PASID, of a device that was made with `DeviceFlags.PASID`."""
PASID_THAT_FAILS = 1024
"""A replace with this PASID fails with ENOMEM at the second call after an attach, once."""

IOTLB_ENTRIES = 4
IOTLB_DEFAULT = 0xBADBEEF
"""What an I/O TLB entry of a nested page table holds unless its maker said otherwise."""
CACHE_ENTRIES = 4
CACHE_DEFAULT = 0xBADDAD
"""What a device's cache entry holds at first."""

# What the mock IOMMU calls itself in the ordinary ioctls.
HW_INFO_TYPE = 0xFEEDBEEF
HW_INFO_REGISTER = 0xDEADBEEF
HWPT_DATA_TYPE = 0xDEAD
HWPT_INVALIDATE_TYPE = 0xDEADBEEF
VIOMMU_TYPE = 0xDEADBEEF
VIOMMU_INVALIDATE_TYPE = 0xDEADBEEF
VEVENTQ_TYPE = 0xBEEFBEEF
HW_QUEUE_TYPE = 0xDEADBEEF
HW_QUEUE_MAX = 2
INVALIDATE_ALL = 1 << 0


class Operation(IntEnum):
    """What the command does."""

    ADD_RESERVED = 1
    MOCK_DOMAIN = 2
    MD_CHECK_MAP = 3
    MD_CHECK_REFS = 4
    CREATE_ACCESS = 5
    DESTROY_ACCESS_PAGES = 6
    ACCESS_PAGES = 7
    ACCESS_RW = 8
    SET_TEMP_MEMORY_LIMIT = 9
    MOCK_DOMAIN_REPLACE = 10
    ACCESS_REPLACE_IOAS = 11
    MOCK_DOMAIN_FLAGS = 12
    DIRTY = 13
    MD_CHECK_IOTLB = 14
    TRIGGER_IOPF = 15
    DEV_CHECK_CACHE = 16
    TRIGGER_VEVENT = 17
    PASID_ATTACH = 18
    PASID_REPLACE = 19
    PASID_DETACH = 20
    PASID_CHECK_HWPT = 21
    DMABUF_GET = 22
    DMABUF_REVOKE = 23


class PageTableType(IntEnum):
    """The formats of page tables, for the data of IOMMU_HWPT_ALLOC."""

    DEFAULT = 0
    HUGE = 1


class DeviceFlags(IntFlag):
    """What a mock device is like."""

    NO_DIRTY = 1 << 0
    PASID = 1 << 2


class AccessFlags(IntFlag):
    """How an access is made, and how memory is accessed by it."""

    NEEDS_PIN_PAGES = 1 << 0
    """Of `create_access`: `access_pages` is possible, and not `access_rw`."""
    WRITE = 1 << 0
    """Of `access_pages` and `access_rw`: write access."""
    RW_SLOW_PATH = 1 << 2
    """Of `access_rw`: go by pinned pages, even where the process itself could copy."""
    SYZ = 1 << 16
    """Of `access_pages` and `access_rw`: the address is the number of a mapping, in its lower half, and an offset."""


_HEADER = struct.Struct("=IIII")  # size, op, id, reserved
_PAYLOAD = 48  # the longest one's: that of DIRTY
_LAST = 8  # the member behind the union, padded to the struct's alignment
_SIZE = _HEADER.size + _PAYLOAD + _LAST


def _run(fd: int, operation: Operation, object_id: int, layout: str = "", *values: int) -> tuple[int, tuple[int, ...]]:
    """Issue the command. Returns what the call returned, and the payload's members as the kernel left them."""
    payload = struct.Struct(f"={layout}")
    command = bytearray(_SIZE)
    _HEADER.pack_into(command, 0, _SIZE, operation, object_id, 0)
    payload.pack_into(command, _HEADER.size, *values)
    try:
        result = raw.ioctl(fd, REQUEST, command)
    except IoctlError as error:
        raise ioctl_error(f"IOMMU_TEST_CMD {operation.name}", error.errno or 0, f"id {object_id}") from None
    return result, payload.unpack_from(command, _HEADER.size)


def add_reserved(fd: int, ioas_id: int, start: int, length: int) -> None:
    """Reserve addresses of an address space, as a device that cannot use them would."""
    _run(fd, Operation.ADD_RESERVED, ioas_id, "QQ", start, length)


def mock_domain(fd: int, pt_id: int) -> tuple[int, int, int]:
    """Make a mock device, bind it and attach it to an address space or page table.

    Returns:
        The ids of the test object, which stands for the device (to destroy it detaches and unbinds), of the page
        table, and of the bound device.
    """
    _, (stdev_id, hwpt_id, idev_id) = _run(fd, Operation.MOCK_DOMAIN, pt_id, "III", 0, 0, 0)
    return stdev_id, hwpt_id, idev_id


def mock_domain_flags(fd: int, pt_id: int, flags: int) -> tuple[int, int, int]:
    """As `mock_domain`, of a device with `DeviceFlags`."""
    _, (stdev_id, hwpt_id, idev_id, _) = _run(fd, Operation.MOCK_DOMAIN_FLAGS, pt_id, "IIII", 0, 0, 0, flags)
    return stdev_id, hwpt_id, idev_id


def mock_domain_replace(fd: int, stdev_id: int, pt_id: int) -> int:
    """Move a mock device to another address space or page table. Returns the page table's id."""
    return _run(fd, Operation.MOCK_DOMAIN_REPLACE, stdev_id, "I", pt_id)[1][0]


def md_check_map(fd: int, hwpt_id: int, iova: int, length: int, user_va: int) -> None:
    """Fail with EINVAL unless a page table leads to this memory, page by page."""
    _run(fd, Operation.MD_CHECK_MAP, hwpt_id, "QQQ", iova, length, user_va)


def md_check_refs(fd: int, user_va: int, length: int, refs: int) -> None:
    """Fail with EIO unless each page is pinned so many times. Pages of huge pages are not looked at."""
    _run(fd, Operation.MD_CHECK_REFS, 0, "QQI", length, user_va, refs)


def create_access(fd: int, ioas_id: int, flags: int) -> int:
    """Make an in-kernel user of an address space, as an emulated device is. Returns its fd."""
    return _run(fd, Operation.CREATE_ACCESS, ioas_id, "II", 0, flags)[1][0]


def destroy_access_pages(fd: int, access_fd: int, pages_id: int) -> None:
    """Unpin what `access_pages` pinned."""
    _run(fd, Operation.DESTROY_ACCESS_PAGES, access_fd, "I", pages_id)


def access_pages(fd: int, access_fd: int, iova: int, length: int, user_va: int, flags: int) -> int:
    """Pin what is mapped at an iova; EBADE unless it is the memory at ``user_va``, where that is not 0.

    Returns:
        The id of what is pinned, for `destroy_access_pages`.
    """
    return _run(fd, Operation.ACCESS_PAGES, access_fd, "IIQQQ", flags, 0, iova, length, user_va)[1][1]


def access_rw(fd: int, access_fd: int, iova: int, length: int, user_va: int, flags: int) -> None:
    """Copy between what is mapped at an iova and memory, as an emulated device does."""
    _run(fd, Operation.ACCESS_RW, access_fd, "QQQI", iova, length, user_va, flags)


def set_temp_memory_limit(fd: int, limit: int) -> None:
    """How much memory iommufd takes for one batch of pages, in bytes; of the whole kernel, until it is set again."""
    _run(fd, Operation.SET_TEMP_MEMORY_LIMIT, 0, "I", limit)


def access_replace_ioas(fd: int, access_fd: int, ioas_id: int) -> None:
    """Move an access to another address space."""
    _run(fd, Operation.ACCESS_REPLACE_IOAS, access_fd, "I", ioas_id)


def dirty(fd: int, hwpt_id: int, iova: int, length: int, page_size: int, bitmap_va: int) -> int:
    """Mark pages as written to, where the bitmap has their bit. Returns how many."""
    values = (0, 0, iova, length, page_size, bitmap_va, 0)
    return _run(fd, Operation.DIRTY, hwpt_id, "IIQQQQQ", *values)[1][-1]


def md_check_iotlb(fd: int, hwpt_id: int, entry: int, value: int) -> None:
    """Fail with EINVAL unless an I/O TLB entry of a nested page table holds this value."""
    _run(fd, Operation.MD_CHECK_IOTLB, hwpt_id, "II", entry, value)


def trigger_iopf(fd: int, device_id: int, pasid: int, group: int, permissions: int, address: int) -> None:
    """Have a device ask for a page (an I/O page fault)."""
    _run(fd, Operation.TRIGGER_IOPF, 0, "IIIIQ", device_id, pasid, group, permissions, address)


def dev_check_cache(fd: int, device_id: int, entry: int, value: int) -> None:
    """Fail with EINVAL unless a cache entry of a device holds this value."""
    _run(fd, Operation.DEV_CHECK_CACHE, device_id, "II", entry, value)


def trigger_vevent(fd: int, device_id: int) -> None:
    """Have a device's virtual IOMMU report an event; ENOENT where the device is behind none."""
    _run(fd, Operation.TRIGGER_VEVENT, 0, "I", device_id)


def pasid_attach(fd: int, stdev_id: int, pasid: int, pt_id: int) -> int:
    """Attach a mock device, with PASID 0 for the DMA without one. Returns the page table's id."""
    return _run(fd, Operation.PASID_ATTACH, stdev_id, "II", pasid, pt_id)[1][1]


def pasid_replace(fd: int, stdev_id: int, pasid: int, pt_id: int) -> int:
    """Move what has been attached with a PASID. Returns the page table's id."""
    return _run(fd, Operation.PASID_REPLACE, stdev_id, "II", pasid, pt_id)[1][1]


def pasid_detach(fd: int, stdev_id: int, pasid: int) -> None:
    """Detach what has been attached with a PASID."""
    _run(fd, Operation.PASID_DETACH, stdev_id, "I", pasid)


def pasid_check_hwpt(fd: int, stdev_id: int, pasid: int, hwpt_id: int) -> None:
    """Fail with EINVAL unless a PASID leads to this page table; 0: to none."""
    _run(fd, Operation.PASID_CHECK_HWPT, stdev_id, "II", pasid, hwpt_id)


def dmabuf_get(fd: int, length: int, open_flags: int) -> int:
    """Make a dma-buf. Returns what the call does: its fd, or, on Linux 7.3, 0 (see `MockDMABuf`)."""
    return _run(fd, Operation.DMABUF_GET, 0, "II", length, open_flags)[0]


def dmabuf_revoke(fd: int, dmabuf_fd: int, revoked: bool) -> None:
    """Take the memory of a dma-buf away from those that have mapped it, or let it be mapped again."""
    _run(fd, Operation.DMABUF_REVOKE, 0, "iI", dmabuf_fd, revoked)
