"""The ioctls of a bound VFIO device, and its mapped regions: the other half of `ioctls`.

What a struct holds comes back as plain numbers and bytes. Errors, threads and the GIL: as said in `ioctls`.
"""

from __future__ import annotations

import errno
import os

from pyiommufd import uapi
from pyiommufd._uapi import ffi, lib
from pyiommufd.errors import ioctl_error
from pyiommufd.light_typing import TYPE_CHECKING, NewType, cast
from pyiommufd.uapi.ioctls import Cell, Fd, File, View, _c, _check, address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RawCapability = tuple[int, int, bytes]
"""A capability of an info struct: its id, its version, and the struct with its header."""


def capability_chain(data: bytes, first: int) -> list[RawCapability]:
    """The capabilities of an info struct and what follows it. ValueError: the chain leaves it, or loops.

    first: where the first one begins, counted from the start of the struct; 0: there is none.
    """
    header = ffi.sizeof("struct vfio_info_cap_header")
    starts: list[int] = []
    while first:
        if first + header > len(data) or first in starts:
            raise ValueError(f"the chain of capabilities leads to {first}, after {starts}")
        starts.append(first)
        first = struct_fields("struct vfio_info_cap_header", data, first)["next"]
    # How long one is, only the next one says.
    ends = {start: min((other for other in starts if other > start), default=len(data)) for start in starts}
    chain = []
    for start in starts:
        fields = struct_fields("struct vfio_info_cap_header", data, start)
        chain.append((fields["id"], fields["version"], data[start : ends[start]]))
    return chain


def struct_fields(struct: str, data: bytes, offset: int = 0) -> Mapping[str, int]:
    """The numbers in a struct of the kernel's, by the names of its fields. ValueError: the data ends before it."""
    size = ffi.sizeof(struct)
    if offset + size > len(data):
        raise ValueError(f"{len(data) - offset} bytes are too few for {struct}")
    copy = ffi.new(f"{struct} *")
    ffi.memmove(copy, data[offset : offset + size], size)
    fields = ffi.typeof(struct).fields or []
    return {name: int(getattr(copy, name)) for name, field in fields if field.type.kind == "primitive"}


def struct_size(struct: str) -> int:
    """The size of a struct of the kernel's in bytes, without the array at its end."""
    return int(ffi.sizeof(struct))


def _info(fd: Fd, request_name: str, request: int, struct: str, **given: int) -> tuple[Mapping[str, int], bytes]:
    """An info struct with what follows it: asked for again with more room until its capabilities fit."""
    size = ffi.sizeof(struct)
    room = size
    while True:
        memory = ffi.new("char[]", room)
        info = ffi.cast(f"{struct} *", memory)
        info.argsz = room
        for name, value in given.items():
            setattr(info, name, value)
        _check(lib.pyiommufd_ioctl(_c(fd), request, info), request_name)
        if info.argsz <= room:
            data = bytes(ffi.buffer(memory))
            return struct_fields(struct, data), data
        room = int(info.argsz)


def device_info(fd: Fd) -> tuple[int, int, int, list[RawCapability]]:
    """VFIO_DEVICE_GET_INFO: flags, number of regions, number of interrupt types, capabilities."""
    info, data = _info(fd, "VFIO_DEVICE_GET_INFO", uapi.VFIO_DEVICE_GET_INFO, "struct vfio_device_info")
    chain = capability_chain(data, info["cap_offset"] if info["flags"] & uapi.VFIO_DEVICE_FLAGS_CAPS else 0)
    return info["flags"], info["num_regions"], info["num_irqs"], chain


def region_info(fd: Fd, index: int) -> tuple[int, int, int, list[RawCapability]]:
    """VFIO_DEVICE_GET_REGION_INFO: flags, size in bytes, the region's offset in the device file, capabilities."""
    info, data = _info(
        fd, "VFIO_DEVICE_GET_REGION_INFO", uapi.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info", index=index
    )
    chain = capability_chain(data, info["cap_offset"] if info["flags"] & uapi.VFIO_REGION_INFO_FLAG_CAPS else 0)
    return info["flags"], info["size"], info["offset"], chain


def irq_info(fd: Fd, index: int) -> tuple[int, int]:
    """VFIO_DEVICE_GET_IRQ_INFO: flags, number of interrupts of this type."""
    info = ffi.new("struct vfio_irq_info *", {"argsz": ffi.sizeof("struct vfio_irq_info"), "index": index})
    _check(lib.pyiommufd_ioctl(_c(fd), uapi.VFIO_DEVICE_GET_IRQ_INFO, info), "VFIO_DEVICE_GET_IRQ_INFO")
    return int(info.flags), int(info.count)


def set_irqs(
    fd: Fd, index: int, action: int, start: int, count: int, eventfds: Sequence[File | None] | None = None
) -> int:
    """VFIO_DEVICE_SET_IRQS: 0; or how many vectors are available, if fewer than requested: then none is on.

    eventfds: what the action is bound to, one an interrupt, or None for nothing; without them it is carried out now. A
    count of 0 with the trigger action and without eventfds turns the type off.
    """
    files = ffi.new("struct pyiommufd_file *[]", [ffi.NULL if one is None else _c(one) for one in eventfds or ()])
    room = 4 * len(files)
    size = ffi.sizeof("struct vfio_irq_set") + room
    flags = action | (uapi.VFIO_IRQ_SET_DATA_NONE if eventfds is None else uapi.VFIO_IRQ_SET_DATA_EVENTFD)
    given = {"argsz": size, "flags": flags, "index": index, "start": start, "count": count, "data": room}
    command = ffi.new("struct vfio_irq_set *", given)
    return _check(lib.pyiommufd_set_irqs(_c(fd), command, files, len(files)), "VFIO_DEVICE_SET_IRQS")


def reset(fd: Fd) -> None:
    """VFIO_DEVICE_RESET."""
    _check(lib.pyiommufd_ioctl(_c(fd), uapi.VFIO_DEVICE_RESET, ffi.NULL), "VFIO_DEVICE_RESET")


def hot_reset_info(fd: Fd) -> tuple[int, list[tuple[int, int, int, int]]]:
    """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: flags; for each device its id or group, segment, bus, and devfn."""
    header, each = ffi.sizeof("struct vfio_pci_hot_reset_info"), ffi.sizeof("struct vfio_pci_dependent_device")
    room = 16
    while True:
        info = ffi.new("struct vfio_pci_hot_reset_info *", {"argsz": header + room * each, "devices": room})
        result = lib.pyiommufd_ioctl(_c(fd), uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, info)
        if result == 0:
            found = [info.devices[i] for i in range(info.count)]
            return int(info.flags), [(int(d.devid), int(d.segment), int(d.bus), int(d.devfn)) for d in found]
        # ENOSPC: there are more than that, and the kernel has said how many. EAGAIN: by now there are.
        if result == -errno.ENOSPC and info.count > room:
            room = int(info.count)
        elif result == -errno.EAGAIN:
            room *= 2
        else:
            _check(result, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO")


def hot_reset(fd: Fd) -> None:
    """VFIO_DEVICE_PCI_HOT_RESET, in the form for a cdev: who owns what is seen from the iommufd, no fds are named."""
    command = ffi.new("struct vfio_pci_hot_reset *", {"argsz": ffi.sizeof("struct vfio_pci_hot_reset")})
    _check(lib.pyiommufd_ioctl(_c(fd), uapi.VFIO_DEVICE_PCI_HOT_RESET, command), "VFIO_DEVICE_PCI_HOT_RESET")


def ioeventfd(fd: Fd, offset: int, width: int, value: int, eventfd: File | None, on: Cell) -> None:
    """VFIO_DEVICE_IOEVENTFD: write a value at each signal of an eventfd; None in its place: no more.

    offset: in the device file; width: 1, 2, 4 or 8 bytes; on becomes whether the kernel writes (``int``).
    """
    event = ffi.NULL if eventfd is None else _c(eventfd)
    result = lib.pyiommufd_ioeventfd(_c(fd), offset, width, value, event, on)
    _check(result, "VFIO_DEVICE_IOEVENTFD")


def feature(fd: Fd, number: int, op: int, data: bytes = b"", room: int = 0) -> bytes:
    """VFIO_DEVICE_FEATURE: what the data of a feature is after the call.

    op: VFIO_DEVICE_FEATURE_GET or SET, and PROBE; data: what it is before; room: bytes that it has at least.
    """
    return feature_files(fd, number, op, data.ljust(room, b"\0"))


def feature_files(
    fd: Fd, number: int, op: int, data: bytes, fd_at: int = -1, given: File | None = None, made: File | None = None
) -> bytes:
    """The same for a feature that takes or makes a file, whose fd is in the data.

    Args:
        fd: The device's.
        number: The feature.
        op: As in `feature`.
        data: As in `feature`.
        fd_at: Where in the data the fd is, in bytes; -1: it is the call's result.
        given: The file whose fd is written there before the call.
        made: The owner of an fd that comes back. It has none where the kernel made none.
    """
    size = ffi.sizeof("struct vfio_device_feature") + len(data)
    command = ffi.new("struct vfio_device_feature *", {"argsz": size, "flags": number | op, "data": data})
    files = (ffi.NULL if file is None else _c(file) for file in (given, made))
    _check(lib.pyiommufd_feature(_c(fd), command, fd_at, *files), "VFIO_DEVICE_FEATURE")
    return bytes(ffi.buffer(command.data, len(data)))


def dma_logging_start(fd: Fd, page_size: int, ranges: Sequence[tuple[int, int]]) -> int:
    """VFIO_DEVICE_FEATURE_DMA_LOGGING_START for (iova, length) of each range; returns the page size in use."""
    memory = ffi.new("struct vfio_device_feature_dma_logging_range[]", list(ranges))
    struct = "struct vfio_device_feature_dma_logging_control"
    control = ffi.new(f"{struct} *", {"page_size": page_size, "num_ranges": len(ranges), "ranges": address(memory)})
    done = feature(
        fd, uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START, uapi.VFIO_DEVICE_FEATURE_SET, bytes(ffi.buffer(control))
    )
    return struct_fields(struct, done)["page_size"]


def dma_logging_report(fd: Fd, iova: int, length: int, page_size: int) -> bytearray:
    """VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: a bit for each page, in whole words of 64 bits."""
    bitmap = bytearray(-(-length // page_size // 64) * 8)
    held = ffi.from_buffer("uint64_t[]", bitmap, require_writable=True)
    given = {"iova": iova, "length": length, "page_size": page_size, "bitmap": address(held)}
    report = ffi.new("struct vfio_device_feature_dma_logging_report *", given)
    feature(fd, uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, uapi.VFIO_DEVICE_FEATURE_GET, bytes(ffi.buffer(report)))
    return bitmap


def zpci_error(fd: Fd, length: int) -> bytes:
    """VFIO_DEVICE_FEATURE_ZPCI_ERROR: the pending error event of that many bytes. ENOMSG: there is none."""
    memory = ffi.new("char[]", length)
    pointer = bytes(ffi.buffer(ffi.new("struct vfio_device_feature_zpci_err *", {"data": address(memory)})))
    feature(fd, uapi.VFIO_DEVICE_FEATURE_ZPCI_ERROR, uapi.VFIO_DEVICE_FEATURE_GET, pointer)
    return bytes(ffi.buffer(memory))


def dma_buf(fd: Fd, region: int, offset: int, length: int, made: File) -> None:
    """VFIO_DEVICE_FEATURE_DMA_BUF: bytes of a region as a dma-buf, whose fd ``made`` owns then."""
    given = {"region_index": region, "open_flags": os.O_RDWR | os.O_CLOEXEC, "nr_ranges": 1}
    asked = ffi.new("struct vfio_device_feature_dma_buf *", {**given, "dma_ranges": [(offset, length)]})
    size = ffi.sizeof("struct vfio_device_feature_dma_buf") + ffi.sizeof("struct vfio_region_dma_range")
    data = bytes(ffi.buffer(asked, size))
    feature_files(fd, uapi.VFIO_DEVICE_FEATURE_DMA_BUF, uapi.VFIO_DEVICE_FEATURE_GET, data, made=made)


def precopy_info(fd: Fd) -> tuple[int, int, int]:
    """VFIO_MIG_GET_PRECOPY_INFO, of a migration data fd: flags, initial bytes, dirty bytes."""
    info = ffi.new("struct vfio_precopy_info *", {"argsz": ffi.sizeof("struct vfio_precopy_info")})
    _check(lib.pyiommufd_ioctl(_c(fd), uapi.VFIO_MIG_GET_PRECOPY_INFO, info), "VFIO_MIG_GET_PRECOPY_INFO")
    return int(info.flags), int(info.initial_bytes), int(info.dirty_bytes)


def gfx_plane(fd: Fd, flags: int, plane_type: int) -> Mapping[str, int]:
    """VFIO_DEVICE_QUERY_GFX_PLANE: the struct; ``region_index`` is the dma-buf's number where it was asked for that."""
    struct = "struct vfio_device_gfx_plane_info"
    plane = ffi.new(f"{struct} *", {"argsz": ffi.sizeof(struct), "flags": flags, "drm_plane_type": plane_type})
    _check(lib.pyiommufd_ioctl(_c(fd), uapi.VFIO_DEVICE_QUERY_GFX_PLANE, plane), "VFIO_DEVICE_QUERY_GFX_PLANE")
    return {**struct_fields(struct, bytes(ffi.buffer(plane))), "region_index": int(plane.region_index)}


def gfx_dma_buf(fd: Fd, number: int, made: File) -> None:
    """VFIO_DEVICE_GET_GFX_DMABUF: the dma-buf of that number, whose fd ``made`` owns then."""
    _check(lib.pyiommufd_gfx_dma_buf(_c(fd), number, _c(made)), "VFIO_DEVICE_GET_GFX_DMABUF")


WindowHandle = NewType("WindowHandle", object)
"""A mapped part of a region, as the C code keeps it."""

# Hot, and fail by returning the negative errno; single accesses are those of `fast.Registers`.
# (window, offset, memory, length, done) -> 0; done becomes how many bytes were moved before the device did not answer.
window_copy_out = cast("Callable[[WindowHandle, int, View, int, Cell], int]", lib.pyiommufd_window_copy_out)
window_copy_in = cast("Callable[[WindowHandle, int, View, int, Cell], int]", lib.pyiommufd_window_copy_in)

# What follows asks and changes the window's own state, which is the same for all threads and signal handlers.
window_mapped = cast("Callable[[WindowHandle], int]", lib.pyiommufd_window_mapped)
window_forget = cast("Callable[[WindowHandle], None]", lib.pyiommufd_window_forget)
"""This process is a forked child, which does not have the mapping."""


def window_new() -> WindowHandle:
    """A window that nothing is mapped in yet. It frees itself, and unmaps where `window_unmap` has not been called."""
    window = ffi.gc(lib.pyiommufd_window_new(), lib.pyiommufd_window_free)
    if window == ffi.NULL:
        raise ioctl_error("mmap", errno.ENOMEM)
    return cast("WindowHandle", window)


def window_map(window: WindowHandle, fd: Fd, offset: int, length: int, *, readable: bool, writeable: bool) -> None:
    """Map part of a device file; offset and length in bytes, on page boundaries. Once for each window.

    ECANCELED: the window has been unmapped before.
    """
    _check(lib.pyiommufd_window_map(window, _c(fd), offset, length, readable, writeable), "mmap")


def window_unmap(window: WindowHandle) -> None:
    """Unmap, once the accesses of other threads that are under way have ended; later ones are refused.

    Nothing is mapped any more when this returns, whoever has unmapped it; and nothing will be.
    """
    _check(lib.pyiommufd_window_unmap(window), "munmap")
