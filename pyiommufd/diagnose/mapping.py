"""Why IOMMU_IOAS_MAP was refused (Linux 7.3: drivers/iommu/iommufd/ioas.c, io_pagetable.c, pages.c)."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from pyiommufd.diagnose import fixes
from pyiommufd.diagnose.mapping_rows import CUT, FOREIGN, NOT_MAPPED, REVOKED
from pyiommufd.diagnose.memory import memory_cause
from pyiommufd.errors import Cause, IoctlError, ioctl_error
from pyiommufd.host import sysfs
from pyiommufd.host.rows import Row


def map_error(
    code: int, request: str, ioas: str, length: int, iova: int | None, ranges: str, neighbours: str = "", kept: str = ""
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
        kept: The ranges that `IOAS.allow_iovas` keeps for addresses that are chosen, in words.
    """
    where = "anywhere" if iova is None else f"at {iova:#x}..{iova + length - 1:#x}"
    target = f"{ioas} ({length:#x} bytes {where})"
    allowed = f"it takes mappings at {ranges}"
    if iova is None:
        place = Cause("address or length is not on boundaries of the IOMMU's pages", "", *fixes.IOMMU_PAGES)
    else:
        place = Cause("these addresses are reserved or out of the IOMMU's reach", allowed, "choose others")
    if kept:
        summary = "there is no free range of that size among those that allow_iovas() keeps"
        room = Cause(summary, kept, "unmap something, or map less, or allow more")
    else:
        room = Cause("there is no free range of that size", allowed, "unmap something, or map less")
    by_errno = {
        errno.EEXIST: Cause(
            "some of these addresses are mapped already",
            neighbours,
            "unmap first, or leave iova out to have it chosen",
        ),
        errno.EINVAL: place,
        errno.ENOSPC: room,
        errno.EOVERFLOW: Cause(
            "the range wraps around the end of the address space", "", "choose a lower iova, or map less"
        ),
        errno.EFAULT: Cause(
            "the memory cannot be pinned for this access",
            "",
            *fixes.READ_ONLY,
        ),
        errno.ENOMEM: memory_cause(),
    }
    cause = by_errno.get(code)
    return ioctl_error(request, code, target, () if cause is None else (cause,))


def map_file_error(error: IoctlError, file: int, start: int, length: int, iova: int | None) -> IoctlError:
    """The exception for a refused IOMMU_IOAS_MAP_FILE, with what its fd is of.

    Args:
        error: What `map_error` makes of it.
        file: The fd.
        start: Where in the file the range begins, in bytes.
        length: How much was to be mapped, in bytes.
        iova: Where, or None where the kernel was to choose.
    """
    code = error.errno or 0
    what, size = _memory_file(file)
    by_errno = {
        errno.EBADF: Cause(f"fd {file} is not open, or by O_PATH alone", "", "keep the file open until it is mapped"),
        errno.ENODEV: REVOKED.cause(what),
        errno.EOPNOTSUPP: FOREIGN.cause(what),
    }
    causes = error.causes
    if code in by_errno:
        causes = (by_errno[code],)
    elif code == errno.EINVAL:
        # Only with a page table there is the file looked at (Linux 7.3, memfd_pin_folios).
        end = start + length
        if size is None:
            file_cause = Cause(
                "this is not a memfd, a file of tmpfs or hugetlbfs, or a dma-buf",
                what,
                "use DMABuffer(size, memfd=True)",
                "use a memfd",
            )
            causes = (file_cause,) if iova is None else (file_cause, *causes)
        elif end > size:
            seen = f"{what} has {size:#x} bytes"
            causes = (Cause(f"the range ends at {end:#x}, after the end of the file", seen, "map no more than it has"),)
    return ioctl_error(error.request, code, error.target, causes)


def unmap_error(code: int, target: str, cut: str, shared: bool) -> IoctlError:
    """The exception for a range that was not unmapped.

    Args:
        code: The errno.
        target: The address space and the range, in words.
        cut: The mappings of this process that it would cut, in words.
        shared: Whether other processes may have mappings there.
    """
    rows: tuple[Row, ...] = ()
    if code == errno.ENOENT:
        rows = (CUT,) if cut else (NOT_MAPPED, CUT) if shared else (NOT_MAPPED,)
    causes = tuple(row.cause(f"mapped: {cut}" if cut else "") for row in rows)
    return ioctl_error("IOMMU_IOAS_UNMAP", code, target, causes)


def revoked_error(code: int, target: str) -> IoctlError:
    """The exception where the kernel does not say whether a dma-buf was revoked; target: the mapping, in words."""
    causes: tuple[Cause, ...] = ()
    yourself = "or keep account of what is done to the device whose dma-buf it is"
    if code == errno.EPERM:
        summary = "whether a dma-buf was revoked is told to holders of CAP_SYS_RAWIO alone"
        causes = (Cause(summary, "", f"ask as root, {yourself}"),)
    elif code in (errno.EOPNOTSUPP, errno.ENOTTY):
        summary = "this kernel does not tell whether a dma-buf was revoked"
        seen = "it is older than 7.3, or built without VFIO_NOIOMMU, which has the request that shows it"
        causes = (Cause(summary, seen, f"take a kernel that does, {yourself}"),)
    return ioctl_error("IOMMU_IOAS_NOIOMMU_GET_PA", code, target, causes)


def change_process_error(code: int, no_file: Sequence[str]) -> IoctlError:
    """The exception for a refused IOMMU_IOAS_CHANGE_PROCESS; no_file: mappings of no memory by its file, in words."""
    causes: tuple[Cause, ...] = ()
    if code == errno.EINVAL:
        which = ", ".join(no_file[:8]) + (" …" if len(no_file) > 8 else "")
        causes = (
            Cause(
                "something is mapped otherwise than by a file of memory: a process's own memory, or a dma-buf",
                which or "mapped by another process",
                "map memfds by IOAS.map_file(), or unmap that first",
                "map memfds (IOMMU_IOAS_MAP_FILE), or unmap that first",
            ),
        )
    elif code == errno.ENOMEM:
        causes = (memory_cause(),)
    return ioctl_error("IOMMU_IOAS_CHANGE_PROCESS", code, "", causes)


def _memory_file(file: int) -> tuple[str, int | None]:
    """What an fd is of, and how many bytes of memory; None where it is of nothing that the kernel maps by its file."""
    what = f"fd {file}"
    try:
        what += f" ({Path(f'/proc/self/fd/{file}').readlink()})"
        details = dict(line.partition(":\t")[::2] for line in sysfs.lines(f"/proc/self/fdinfo/{file}"))
        if "exp_name" in details:  # a dma-buf (Linux 7.3, drivers/dma-buf/dma-buf.c)
            return f"{what} of {details['exp_name']}", int(details["size"])
        # The files that can have seals are those that memfd_pin_folios takes (Linux 7.3, mm/memfd.c, mm/gup.c).
        fcntl.fcntl(file, fcntl.F_GET_SEALS)
        return what, os.fstat(file).st_size
    except OSError:
        return what, None
