"""Why IOMMU_IOAS_MAP was refused (Linux 7.3: drivers/iommu/iommufd/ioas.c, io_pagetable.c, pages.c)."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

from ..errors import Cause, IoctlError, ioctl_error
from ..host import sysfs


def map_error(
    code: int, request: str, ioas: str, length: int, iova: int | None, ranges: str, neighbours: str = ""
) -> IoctlError:
    """The exception for a refused map.

    Args:
        code: The errno.
        request: The ioctl.
        ioas: The address space, in words.
        length: How much was to be mapped, in bytes.
        iova: Where, or None where the kernel was to choose.
        ranges: Where the address space takes mappings, in words.
        neighbours: Mappings of this process that lie there already, in words.
    """
    where = "anywhere" if iova is None else f"at {iova:#x}..{iova + length - 1:#x}"
    target = f"{ioas} ({length:#x} bytes {where})"
    allowed = f"it takes mappings at {ranges}"
    by_errno = {
        errno.EEXIST: Cause(
            "some of these addresses are mapped already",
            neighbours,
            "unmap first, or leave iova out to have it chosen",
        ),
        errno.EINVAL: Cause("these addresses are reserved or out of the IOMMU's reach", allowed, "choose others"),
        errno.ENOSPC: Cause("there is no free range of that size", allowed, "unmap something, or map less"),
        errno.EOVERFLOW: Cause("the range wraps around the end of the address space", "", "choose a lower iova"),
        errno.EFAULT: Cause(
            "the memory cannot be pinned for this access",
            "",
            "map read-only memory with writeable=False; device registers cannot be mapped this way",
        ),
        errno.ENOMEM: Cause(
            "the memory could not be pinned", _memlock(), "raise the limit on locked memory (ulimit -l)"
        ),
    }
    cause = by_errno.get(code)
    return ioctl_error(request, code, target, () if cause is None else (cause,))


def _memlock() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:#x} bytes"
    status = sysfs.read(Path("/proc/self/status")) or ""
    pinned = [line.split(None, 1)[1] for line in status.splitlines() if line.startswith("VmPin:")]
    text = f"locked memory is limited to {limit}; other processes of this user count too"
    return f"{text}; this process has pinned {pinned[0]}" if pinned else text
