"""Page tables made on trial: whether an attach would fail for what is mapped, and for which mapping."""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING

from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.attachable import Attachable
    from pyiommufd.kernel.memory.ioas import IOAS

# Addresses of which every IOMMU translates one: the mock's begin at 16 MiB.
_PLAIN = (0x1000, 1 << 24)
_MOST = 4096  # mappings that are tried one by one


def try_page_table(device: Attachable, ioas: IOAS) -> int:
    """Whether a page table of this device holds what is mapped: 0, or the errno that an attach would end with.

    Makes the page table and destroys it, which pins the memory for a moment and checks alignment and the IOMMU's
    reach; not the reserved regions, which only an attach adds. ENOTTY, EOPNOTSUPP and ENOENT say that this kernel or
    device cannot try. The iommufd's lock is held.
    """
    code = _try(device, ioas)
    # A virtio-iommu of 6.12 gives a page table its reach only at the attach: there every trial fails, also that of a
    # single page at a plain address, and says nothing.
    if code == errno.EADDRINUSE:
        alone = [_try(device, ioas, at, mmap.PAGESIZE, to) for at, _ in ioas._table.places()[:1] for to in _PLAIN]
        if alone and all(one == code for one in alone):
            return errno.EOPNOTSUPP
    return code


def _try(device: Attachable, ioas: IOAS, iova: int = 0, length: int = 0, dst_iova: int = 0) -> int:
    return ioctls.try_page_table(device._c, ioas._c, iova, length, dst_iova)


def unfit_mappings(device: Attachable, ioas: IOAS, code: int) -> list[IOVARange]:
    """The mappings of an address space that a page table of this device fails for, with that errno.

    Memory is pinned, and addresses are checked, when a page table is made. So each mapping is copied alone to an
    address space of its own, and a page table made for that: one that fails by itself is one that is in the way. The
    iommufd's lock is held.
    """
    places = ioas._table.places()[:_MOST]
    return [IOVARange(iova, iova + size - 1) for iova, size in places if _try(device, ioas, iova, size, iova) == code]
