"""Page tables made on trial: whether an attach would fail for what is mapped, and for which mapping."""

from __future__ import annotations

import errno
import mmap

from .. import uapi
from ..errors import IoctlError
from ..uapi import ioctls
from .ioas import IOAS
from .iova import IOVARange

# Addresses of which every IOMMU translates one: the mock's begin at 16 MiB.
_PLAIN = (0x1000, 1 << 24)
_MOST = 4096  # mappings that are tried one by one


def try_page_table(iommufd: int, device_id: int, page_table: IOAS) -> int:
    """Whether a page table of this device holds what is mapped: 0, or the errno that an attach would end with.

    Makes the page table and destroys it (IOMMU_HWPT_ALLOC, IOMMU_DESTROY), which pins the memory for a moment and
    checks alignment and the IOMMU's reach; not the reserved regions, which only an attach adds. ENOTTY, EOPNOTSUPP and
    ENOENT say that this kernel or device cannot try.
    """
    code = _trial(iommufd, device_id, page_table.id)
    # A virtio-iommu of 6.12 gives a page table its reach only at the attach: there every trial fails, also that of a
    # single page at a plain address, and says nothing.
    if code == errno.EADDRINUSE and all(_trial_alone(iommufd, device_id, page_table, iova) == code for iova in _PLAIN):
        return errno.EOPNOTSUPP
    return code


def _trial(iommufd: int, device_id: int, ioas_id: int) -> int:
    try:
        ioctls.destroy(iommufd, ioctls.hwpt_alloc(iommufd, device_id, ioas_id))
    except IoctlError as error:
        return error.errno or 0
    return 0


def _trial_alone(iommufd: int, device_id: int, page_table: IOAS, dst_iova: int) -> int:
    """A trial of one page of what is mapped, at an address of its own."""
    scratch = ioctls.ioas_alloc(iommufd)
    try:
        for iova, _ in page_table.table.places()[:1]:
            _copy(iommufd, page_table, scratch, iova, mmap.PAGESIZE, dst_iova)
        return _trial(iommufd, device_id, scratch)
    except IoctlError:
        return 0
    finally:
        ioctls.destroy(iommufd, scratch)


def _copy(iommufd: int, page_table: IOAS, scratch: int, iova: int, length: int, dst_iova: int) -> None:
    # Readable is enough: whether the memory is pinned for writing was said by the first map of it.
    ioctls.ioas_copy(
        iommufd,
        flags=uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_FIXED_IOVA,
        dst_ioas_id=scratch,
        src_ioas_id=page_table.id,
        length=length,
        dst_iova=dst_iova,
        src_iova=iova,
    )


def unfit_mappings(iommufd: int, device_id: int, page_table: IOAS, code: int) -> list[IOVARange]:
    """The mappings of an address space that a page table of this device fails for, with that errno.

    Memory is pinned, and addresses are checked, when a page table is made. So each mapping is copied alone to an
    address space of its own, and a page table made for that: one that fails by itself is one that is in the way.

    Args:
        iommufd: The fd.
        device_id: The bound device.
        page_table: The address space.
        code: The errno of the attach.
    """
    found = []
    for iova, length in page_table.table.places()[:_MOST]:
        scratch = ioctls.ioas_alloc(iommufd)
        try:
            _copy(iommufd, page_table, scratch, iova, length, iova)
            ioctls.destroy(iommufd, ioctls.hwpt_alloc(iommufd, device_id, scratch))
        except IoctlError as error:
            if error.errno == code:
                found.append(IOVARange(iova, iova + length - 1))
        finally:
            ioctls.destroy(iommufd, scratch)
    return found
