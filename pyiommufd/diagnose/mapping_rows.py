"""The reasons for refused requests about mappings (Linux 7.3: drivers/iommu/iommufd/io_pagetable.c, pages.c)."""

from __future__ import annotations

import errno

from pyiommufd.diagnose import fixes
from pyiommufd.diagnose.memory import memory_cause
from pyiommufd.errors import Cause, Fix
from pyiommufd.host.rows import Row, Rows, Subject


def _memory_of_this_user(subject: Subject) -> tuple[Cause, ...]:
    del subject
    return (memory_cause(),)


_MAP, _MAP_FILE, _UNMAP, _COPY = "IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE", "IOMMU_IOAS_UNMAP", "IOMMU_IOAS_COPY"
_RANGES, _ALLOW = "IOMMU_IOAS_IOVA_RANGES", "IOMMU_IOAS_ALLOW_IOVAS"

NOT_MAPPED = Row("nothing is mapped there", "unmap what map returned")
CUT = Row("the range would cut a mapping in two; mappings before it may be gone", "unmap whole mappings")
HOLE = Row("not all of the source range is mapped", "copy what is mapped")

FOREIGN = Row(
    "this dma-buf is no single range of a vfio device's BAR, and an iommufd maps no other, nor one of a dma-buf heap",
    Fix(
        "use one of Region.export_dma_buf(); for memory a DMABuffer",
        "use one of VFIO_DEVICE_FEATURE_DMA_BUF with one range; for memory a memfd",
    ),
)
REVOKED = Row(
    "the dma-buf is revoked: its device has memory decode off, has entered low power, or is closed",
    Fix(
        "set memory_decode to True, or call low_power.exit(), and map it again; export it anew if it was closed",
        "turn memory decode on, or VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, also if it has been woken, and map it again; "
        "make a new one if it was closed",
    ),
)

_PLACE: dict[int, tuple[Row, ...]] = {
    errno.EEXIST: (Row("some of these addresses are mapped already", "unmap first, or let the kernel choose them"),),
    errno.EINVAL: (
        Row("the addresses are reserved or out of the IOMMU's reach",
            Fix("choose others: IOAS.iova_ranges() says which", "choose others: IOMMU_IOAS_IOVA_RANGES says which")),
        Row("address, length or iova is not on page boundaries, or the length is 0", "map whole pages"),
        Row("neither reading nor writing was asked for", "map readable, writeable or both"),
    ),
    errno.ENOSPC: (Row("there is no free range of that size", "unmap something, or map less"),),
    errno.EOVERFLOW: (Row("the range wraps around the end of the address space", "choose a lower iova"),),
    errno.EFAULT: (
        Row("the memory is read-only, and was to be mapped writeable",
            Fix("map it with writeable=False", "map it without IOMMU_IOAS_MAP_WRITEABLE")),
        Row("it is a device's registers", "share them as a dma-buf (VFIO_DEVICE_FEATURE_DMA_BUF) and map that"),
        Row("there is no memory at the address", "map memory that exists and stays"),
    ),
    errno.ENOMEM: (
        Row("the limit on locked memory, or memory itself, is used up", fixes.MEMORY_LIMIT, _memory_of_this_user),
    ),
    errno.ENOENT: (Row("there is no address space of that id", "use one that is not closed yet"),),
}  # fmt: skip

MAPPING: Rows = {
    **{(request, code): rows for request in (_MAP, _MAP_FILE, _COPY) for code, rows in _PLACE.items()},
    (_MAP_FILE, errno.EBADF): (Row("the file's fd is closed", "give the fd of an open file"),),
    (_MAP_FILE, errno.EINVAL): (
        Row("the file is neither a memfd, of tmpfs or hugetlbfs, nor a dma-buf", "map a memfd"),
        Row("the range goes past the end of the file", "map no more than it has"),
        *_PLACE[errno.EINVAL],
    ),
    (_MAP_FILE, errno.EOPNOTSUPP): (FOREIGN,),
    (_MAP_FILE, errno.ENODEV): (REVOKED,),
    (_UNMAP, errno.ENOENT): (
        NOT_MAPPED,
        CUT,
    ),
    (_UNMAP, errno.EOVERFLOW): (
        Row("the range wraps around the end of the address space", "choose a lower iova, or unmap less"),
    ),
    (_UNMAP, errno.EBUSY): (Row("the kernel uses the memory for a nested page table or queue", "close that first"),),
    (_UNMAP, errno.EDEADLK): (Row("a driver in the kernel did not let go of the memory", "close its user first"),),
    (_COPY, errno.ENOENT): (
        HOLE,
        Row("there is no address space of that id", "use ones that are not closed yet"),
    ),
    (_COPY, errno.EPERM): (
        Row("the source is mapped read-only, the copy was to be writeable",
            Fix("writeable=False", "leave IOMMU_IOAS_MAP_WRITEABLE out")),
    ),
    (_RANGES, errno.EMSGSIZE): (Row("there are more ranges than room was given for", "ask again with that count"),),
    (_RANGES, errno.ENOENT): _PLACE[errno.ENOENT],
    (_ALLOW, errno.EADDRINUSE): (
        Row("a range to be allowed is reserved by an attached device",
            Fix("leave that out: IOAS.iova_ranges() says which", "leave that out: IOMMU_IOAS_IOVA_RANGES says which")),
    ),
    (_ALLOW, errno.EINVAL): (Row("two ranges overlap, or one is a single byte or empty", "give ranges apart"),),
}  # fmt: skip
"""Every reason for a refused request about mappings."""
