"""Why IOMMU_IOAS_MAP was refused (Linux 7.3: drivers/iommu/iommufd/ioas.c, io_pagetable.c, pages.c)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ..errors import Cause, IoctlError, ioctl_error
from .memory import memory_cause


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
        errno.ENOMEM: memory_cause(),
    }
    cause = by_errno.get(code)
    return ioctl_error(request, code, target, () if cause is None else (cause,))


def map_file_error(
    code: int, ioas: str, file: int, start: int, length: int, iova: int | None, ranges: str, neighbours: str = ""
) -> IoctlError:
    """The exception for a refused IOMMU_IOAS_MAP_FILE: `file` is the fd; the rest is as for `map_error`."""
    error = map_error(code, "IOMMU_IOAS_MAP_FILE", ioas, length, iova, ranges, neighbours)
    what, size = _file(file)
    by_errno = {
        errno.EBADF: Cause(f"fd {file} is not open", "", "keep the file open until it is mapped"),
        errno.ENODEV: Cause("the dma-buf was revoked", what, "export it anew once the device is awake and decodes"),
        errno.EOPNOTSUPP: Cause(
            "the exporter of this dma-buf does not lend its memory to an iommufd", what, "only vfio-pci does"
        ),
    }
    causes = error.causes
    if code in by_errno:
        causes = (by_errno[code],)
    elif code == errno.EINVAL:
        # Only with a page table there is the file looked at (Linux 7.3, memfd_pin_folios).
        end = start + length
        if size is not None and not _of_memory(what):
            file_cause = Cause("this is no memfd and no file of hugetlbfs", what, "use DMABuffer(size, memfd=True)")
            causes = (file_cause, *causes)
        elif size is not None and end > size:
            seen = f"{what} has {size:#x} bytes"
            causes = (Cause(f"the range ends at {end:#x}, after the end of the file", seen, "map no more than it has"),)
    return ioctl_error(error.request, code, error.target, causes)


def change_process_error(code: int, of_memory: Sequence[str]) -> IoctlError:
    """The exception for a refused IOMMU_IOAS_CHANGE_PROCESS; of_memory: mappings that are not of files, in words."""
    causes: tuple[Cause, ...] = ()
    if code == errno.EINVAL:
        which = ", ".join(of_memory[:8]) + (" …" if len(of_memory) > 8 else "")
        causes = (
            Cause(
                "memory is mapped that is not a file's, and so belongs to the process that mapped it",
                which or "mapped by another process",
                "map memfds by IOAS.map_file(), or unmap that first",
            ),
        )
    elif code == errno.ENOMEM:
        causes = (memory_cause(),)
    return ioctl_error("IOMMU_IOAS_CHANGE_PROCESS", code, "", causes)


def _file(file: int) -> tuple[str, int | None]:
    """What an fd is of, and its size in bytes; None where it has none or is not open."""
    try:
        status = os.fstat(file)
        what = str(Path(f"/proc/self/fd/{file}").readlink())
    except OSError:
        return f"fd {file}", None
    return f"fd {file} ({what})", status.st_size if stat.S_ISREG(status.st_mode) else None


def _of_memory(what: str) -> bool:
    return "/memfd:" in what or "/dev/hugepages" in what
