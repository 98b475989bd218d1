"""What issues ioctls and touches C: a typed face of the compiled extension, with `device_ioctls` beside it.

Above them there is no cdata and no request number. Every function raises `pyiommufd.errors.IoctlError`, bare of
causes, when the kernel refuses; but for `ioas_map` and `ioas_unmap`, the hot path, which return `FAILED` and
leave the reason to `last_errno`. All of them release the GIL while the kernel works and may be called from any
thread; that the fd stays open meanwhile is the caller's care.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from pyiommufd._uapi import ffi, lib

from ..errors import IoctlError, ioctl_error

FAILED = 0xFFFF_FFFF_FFFF_FFFF
"""What `ioas_map` and `ioas_unmap` return when they fail: no mapping can be there, or be that long."""


class View(Protocol):
    """Memory held through the buffer protocol: while it exists, its owner cannot resize or free it."""

    def __len__(self) -> int:
        """Its length in bytes."""


# Bound here once, with types that say what Python passes: a wrapper would be a call more on the hot path.
ioas_map = cast("Callable[[int, int, int, View, int, int], int]", lib.pyiommufd_ioas_map)
"""IOMMU_IOAS_MAP: (fd, ioas_id, flags, user_va, length, iova) -> iova, or `FAILED`.

`last_errno` is 0 where address, length or iova is not on page boundaries, or the length 0: no ioctl was issued."""
ioas_map_file: Callable[[int, int, int, int, int, int, int], int] = lib.pyiommufd_ioas_map_file
"""IOMMU_IOAS_MAP_FILE: (fd, ioas_id, flags, file, start, length, iova) -> iova, or `FAILED`."""
ioas_unmap: Callable[[int, int, int, int], int] = lib.pyiommufd_ioas_unmap
"""IOMMU_IOAS_UNMAP: (fd, ioas_id, iova, length) -> bytes unmapped, or `FAILED`."""


def last_errno() -> int:
    """The errno of this thread's last call that failed."""
    return int(ffi.errno)


CHAR_ARRAY: object = ffi.typeof("char[]")
"""The type of a `View`, made once."""

from_buffer = cast("Callable[[object, object, bool], View]", ffi.from_buffer)
"""(CHAR_ARRAY, buffer, writeable) -> the memory of an object that has the buffer protocol, held.

Raises:
    TypeError: It has no contiguous memory to share.
    BufferError, ValueError: It is read-only and is to be written to, or it is closed.
"""


def address(held: View) -> int:
    """The address of the memory that a `View` holds."""
    return int(ffi.cast("uintptr_t", cast("Any", held)))


def release(held: View) -> None:
    """Let go of the memory at once, rather than when the last reference goes."""
    ffi.release(cast("Any", held))


def failure(request: str, target: str = "", code: int | None = None) -> IoctlError:
    """The exception for a call that failed, by this thread's last errno unless another is given."""
    return ioctl_error(request, last_errno() if code is None else code, target)


def destroy(fd: int, object_id: int) -> None:
    """IOMMU_DESTROY."""
    if lib.pyiommufd_destroy(fd, object_id) < 0:
        raise failure("IOMMU_DESTROY")


def ioas_alloc(fd: int) -> int:
    """IOMMU_IOAS_ALLOC: the id of a new address space."""
    ioas_id = lib.pyiommufd_ioas_alloc(fd)
    if ioas_id < 0:
        raise failure("IOMMU_IOAS_ALLOC")
    return int(ioas_id)


def ioas_last_map(fd: int, ioas_id: int) -> int:
    """What this thread's last call mapped (`ioas_map`, `ioas_copy`), if there; once, and `FAILED` when asked again."""
    return int(lib.pyiommufd_ioas_last_map(fd, ioas_id))


def ioas_last_unmap(fd: int, ioas_id: int) -> int:
    """The iova of this thread's last successful `ioas_unmap`, if there; once, and `FAILED` when asked again."""
    return int(lib.pyiommufd_ioas_last_unmap(fd, ioas_id))


def ioas_map_many(fd: int, ioas_id: int, flags: int, memory: View, pieces: array[int]) -> int:
    """IOMMU_IOAS_MAP for each piece, by one call: how many were mapped before one failed (see `last_errno`).

    pieces: for each its offset in the memory, its length and its iova; then one number more. `FAILED` as an iova lets
    the kernel choose, and is overwritten by what it chose. The number at the end becomes what is returned, for where
    a signal handler raises before that can be used.
    """
    numbers = cast("Any", ffi.from_buffer("uint64_t[]", pieces, require_writable=True))
    return int(lib.pyiommufd_ioas_map_many(fd, ioas_id, flags, cast("Any", memory), numbers, len(pieces) // 3))


def ioas_unmap_many(fd: int, ioas_id: int, pieces: array[int]) -> int:
    """IOMMU_IOAS_UNMAP for each piece, by one call: how many were unmapped before one failed (see `last_errno`)."""
    numbers = cast("Any", ffi.from_buffer("uint64_t[]", pieces))
    return int(lib.pyiommufd_ioas_unmap_many(fd, ioas_id, numbers, len(pieces) // 3))


def ioas_first_hole(fd: int, ioas_id: int, iova: int, length: int) -> int | None:
    """The first address of a range that is not mapped, by whatever process; None where all of it is.

    By IOMMU_IOAS_COPY to an address space that is made for it and destroyed again.
    """
    hole = ffi.new("uint64_t *")
    found = lib.pyiommufd_ioas_first_hole(fd, ioas_id, iova, length, hole)
    if found < 0:
        raise failure("IOMMU_IOAS_COPY")
    return int(hole[0]) if found else None


def ioas_copy(
    fd: int, *, flags: int, dst_ioas_id: int, src_ioas_id: int, length: int, dst_iova: int, src_iova: int
) -> int:
    """IOMMU_IOAS_COPY: the iova of the copy."""
    iova = int(lib.pyiommufd_ioas_copy(fd, dst_ioas_id, flags, src_ioas_id, src_iova, length, dst_iova))
    if iova == FAILED:
        raise failure("IOMMU_IOAS_COPY")
    return iova


def ioas_allow_iovas(fd: int, ioas_id: int, ranges: Sequence[tuple[int, int]]) -> None:
    """IOMMU_IOAS_ALLOW_IOVAS; ranges: (start, inclusive last)."""
    allowed = ffi.new("struct iommu_iova_range[]", [{"start": start, "last": last} for start, last in ranges])
    command = ffi.new("struct iommu_ioas_allow_iovas *")
    command.size = ffi.sizeof("struct iommu_ioas_allow_iovas")
    command.ioas_id = ioas_id
    command.num_iovas = len(ranges)
    command.allowed_iovas = int(ffi.cast("uintptr_t", allowed))
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_IOAS_ALLOW_IOVAS, command) < 0:
        raise failure("IOMMU_IOAS_ALLOW_IOVAS")


def option(fd: int, option_id: int, object_id: int, value: int | None = None) -> int:
    """IOMMU_OPTION: set the option to the value, or get it where that is None. Returns the value."""
    command = ffi.new("struct iommu_option *")
    command.size = ffi.sizeof("struct iommu_option")
    command.option_id = option_id
    command.object_id = object_id
    command.op = lib.IOMMU_OPTION_OP_GET if value is None else lib.IOMMU_OPTION_OP_SET
    command.val64 = value or 0
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_OPTION, command) < 0:
        raise failure("IOMMU_OPTION")
    return int(command.val64)


def vfio_ioas(fd: int, op: int, ioas_id: int = 0) -> int:
    """IOMMU_VFIO_IOAS: get, set or clear. Returns the id."""
    command = ffi.new("struct iommu_vfio_ioas *")
    command.size = ffi.sizeof("struct iommu_vfio_ioas")
    command.op = op
    command.ioas_id = ioas_id
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_VFIO_IOAS, command) < 0:
        raise failure("IOMMU_VFIO_IOAS")
    return int(command.ioas_id)


def ioas_change_process(fd: int) -> None:
    """IOMMU_IOAS_CHANGE_PROCESS."""
    command = ffi.new("struct iommu_ioas_change_process *")
    command.size = ffi.sizeof("struct iommu_ioas_change_process")
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_IOAS_CHANGE_PROCESS, command) < 0:
        raise failure("IOMMU_IOAS_CHANGE_PROCESS")


def ioas_noiommu_get_pa(fd: int, ioas_id: int, iova: int, length: int) -> tuple[int, int]:
    """IOMMU_IOAS_NOIOMMU_GET_PA: the physical address, and how many bytes are contiguous there."""
    command = ffi.new("struct iommu_ioas_noiommu_get_pa *")
    command.size = ffi.sizeof("struct iommu_ioas_noiommu_get_pa")
    command.ioas_id = ioas_id
    command.iova = iova
    command.length = length
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_IOAS_NOIOMMU_GET_PA, command) < 0:
        raise failure("IOMMU_IOAS_NOIOMMU_GET_PA")
    return int(command.out_phys), int(command.length)


def hwpt_alloc(
    fd: int, dev_id: int, pt_id: int, *, flags: int = 0, data_type: int = 0, data: bytes = b"", fault_id: int = 0
) -> int:
    """IOMMU_HWPT_ALLOC: the id of a page table that the device's IOMMU can walk, over an address space."""
    held = ffi.from_buffer(data)
    command = ffi.new("struct iommu_hwpt_alloc *")
    command.size = ffi.sizeof("struct iommu_hwpt_alloc")
    command.flags = flags
    command.dev_id = dev_id
    command.pt_id = pt_id
    command.data_type = data_type
    command.data_len = len(data)
    command.data_uptr = int(ffi.cast("uintptr_t", held)) if data else 0
    command.fault_id = fault_id
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_HWPT_ALLOC, command) < 0:
        raise failure("IOMMU_HWPT_ALLOC")
    return int(command.out_hwpt_id)


def fault_queue_alloc(fd: int) -> tuple[int, int]:
    """IOMMU_FAULT_QUEUE_ALLOC: the queue's id and its fd."""
    command = ffi.new("struct iommu_fault_alloc *")
    command.size = ffi.sizeof("struct iommu_fault_alloc")
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_FAULT_QUEUE_ALLOC, command) < 0:
        raise failure("IOMMU_FAULT_QUEUE_ALLOC")
    return int(command.out_fault_id), int(command.out_fault_fd)


def hwpt_set_dirty_tracking(fd: int, hwpt_id: int, flags: int) -> None:
    """IOMMU_HWPT_SET_DIRTY_TRACKING."""
    command = ffi.new("struct iommu_hwpt_set_dirty_tracking *")
    command.size = ffi.sizeof("struct iommu_hwpt_set_dirty_tracking")
    command.flags = flags
    command.hwpt_id = hwpt_id
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_HWPT_SET_DIRTY_TRACKING, command) < 0:
        raise failure("IOMMU_HWPT_SET_DIRTY_TRACKING")


def hwpt_get_dirty_bitmap(
    fd: int, hwpt_id: int, flags: int, iova: int, length: int, page_size: int, bitmap: bytearray
) -> None:
    """IOMMU_HWPT_GET_DIRTY_BITMAP: bits are added to those of the bitmap, whole words of 64 bits."""
    held = ffi.from_buffer("uint64_t[]", bitmap, require_writable=True)
    command = ffi.new("struct iommu_hwpt_get_dirty_bitmap *")
    command.size = ffi.sizeof("struct iommu_hwpt_get_dirty_bitmap")
    command.hwpt_id = hwpt_id
    command.flags = flags
    command.iova = iova
    command.length = length
    command.page_size = page_size
    command.data = int(ffi.cast("uintptr_t", held))
    if lib.pyiommufd_ioctl(fd, lib.IOMMU_HWPT_GET_DIRTY_BITMAP, command) < 0:
        raise failure("IOMMU_HWPT_GET_DIRTY_BITMAP")


def get_hw_info(fd: int, dev_id: int, data_type: int | None) -> tuple[int, int, int, bytes]:
    """IOMMU_GET_HW_INFO: data type, width of PASIDs in bits, capabilities, and the IOMMU driver's own data."""
    room = 256
    while True:
        data = ffi.new("char[]", room)
        command = ffi.new("struct iommu_hw_info *")
        command.size = ffi.sizeof("struct iommu_hw_info")
        command.dev_id = dev_id
        command.data_len = room
        command.data_uptr = int(ffi.cast("uintptr_t", data))
        if data_type is not None:
            command.flags = lib.IOMMU_HW_INFO_FLAG_INPUT_TYPE
            command.in_data_type = data_type
        if lib.pyiommufd_ioctl(fd, lib.IOMMU_GET_HW_INFO, command) < 0:
            raise failure("IOMMU_GET_HW_INFO")
        if command.data_len <= room:
            width, length = int(command.out_max_pasid_log2), int(command.data_len)
            return int(command.out_data_type), width, int(command.out_capabilities), bytes(ffi.buffer(data, length))
        room = int(command.data_len)


def ioas_iova_ranges(fd: int, ioas_id: int) -> tuple[list[tuple[int, int]], int]:
    """IOMMU_IOAS_IOVA_RANGES: (start, inclusive last) of each range, and the alignment in bytes."""
    room = 16
    while True:
        ranges = ffi.new("struct iommu_iova_range[]", room)
        command = ffi.new("struct iommu_ioas_iova_ranges *")
        command.size = ffi.sizeof("struct iommu_ioas_iova_ranges")
        command.ioas_id = ioas_id
        command.num_iovas = room
        command.allowed_iovas = int(ffi.cast("uintptr_t", ranges))
        if lib.pyiommufd_ioctl(fd, lib.IOMMU_IOAS_IOVA_RANGES, command) == 0:
            found = [(int(ranges[i].start), int(ranges[i].last)) for i in range(command.num_iovas)]
            return found, int(command.out_iova_alignment)
        # EMSGSIZE: there are more than that by now, and the kernel has said how many.
        if last_errno() != errno.EMSGSIZE or command.num_iovas <= room:
            raise failure("IOMMU_IOAS_IOVA_RANGES")
        room = int(command.num_iovas)


def bind(fd: int, iommufd: int, token: bytes | None) -> int:
    """VFIO_DEVICE_BIND_IOMMUFD: the id of the device in the iommufd. token: 16 bytes, or None."""
    device_id = lib.pyiommufd_bind(fd, iommufd, ffi.NULL if token is None else ffi.from_buffer(token))
    if device_id < 0:
        raise failure("VFIO_DEVICE_BIND_IOMMUFD")
    return int(device_id)


def attach(fd: int, pt_id: int, pasid: int | None) -> None:
    """VFIO_DEVICE_ATTACH_IOMMUFD_PT.

    The id that the kernel writes back is not returned: that of an automatic page table is given to another
    object at once after the detach.
    """
    if lib.pyiommufd_attach(fd, pt_id, -1 if pasid is None else pasid) < 0:
        raise failure("VFIO_DEVICE_ATTACH_IOMMUFD_PT")


def detach(fd: int, pasid: int | None) -> None:
    """VFIO_DEVICE_DETACH_IOMMUFD_PT."""
    if lib.pyiommufd_detach(fd, -1 if pasid is None else pasid) < 0:
        raise failure("VFIO_DEVICE_DETACH_IOMMUFD_PT")
