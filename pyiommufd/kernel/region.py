"""A device's regions: its BARs, ROM and configuration space."""

from __future__ import annotations

import errno
import mmap
import operator
import os
from enum import IntFlag
from typing import TYPE_CHECKING

from .. import uapi
from ..errors import UnsupportedError, ioctl_error
from ..uapi import ioctls
from .window import Window

if TYPE_CHECKING:
    from .device import Device


class RegionFlag(IntFlag):
    """What can be done with a region (VFIO_REGION_INFO_FLAG_*)."""

    READ = uapi.VFIO_REGION_INFO_FLAG_READ
    WRITE = uapi.VFIO_REGION_INFO_FLAG_WRITE
    MMAP = uapi.VFIO_REGION_INFO_FLAG_MMAP
    CAPS = uapi.VFIO_REGION_INFO_FLAG_CAPS


class Region:
    """A region of a bound device (VFIO_DEVICE_GET_REGION_INFO). Made by `Device.region`.

    Thread safety: everything here may be used from any thread.

    Attributes:
        index: Its number; for PCI 0 to 5 are the BARs, 6 the ROM, 7 the configuration space.
        size: Bytes; 0 where the device has no such region.
        flags: What can be done with it.
    """

    __slots__ = ("__weakref__", "_offset", "device", "flags", "index", "size")

    def __init__(self, device: Device, index: int) -> None:
        index = operator.index(index)
        if not 0 <= index <= 0xFFFF_FFFF:
            raise ValueError(f"{index} is no index of a region")
        flags, self.size, self._offset = ioctls.region_info(device.fileno(), index)
        self.flags = RegionFlag(flags)
        self.device = device
        self.index = index

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size:#x} bytes at {offset:#x} are not within {self!r} of {self.size:#x} bytes")

    def read(self, offset: int, size: int) -> bytes:
        """Read by the kernel (pread), which wakes a sleeping device and never faults.

        How many bus accesses that takes is the kernel's choice; where it matters, use a `Window`.

        Args:
            offset: Bytes from the start of the region.
            size: Bytes.

        Raises:
            ValueError: The range is not within the region.
            OSError: EIO: the device's memory decode is off; EINVAL: the region cannot be read.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        offset, size = operator.index(offset), operator.index(size)
        self._check(offset, size)
        data = bytearray()
        fd = self.device.fileno()
        while len(data) < size:
            try:
                piece = os.pread(fd, size - len(data), self._offset + offset + len(data))
            except OSError as error:
                raise ioctl_error("pread", error.errno or 0, repr(self)) from None
            if not piece:
                raise ioctl_error("pread", errno.EIO, repr(self))
            data += piece
        return bytes(data)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write by the kernel (pwrite). As for `read`.

        Args:
            offset: Bytes from the start of the region.
            data: What to write there.

        Raises:
            ValueError, OSError, ClosedError, ForkedError: As for `read`.
            TypeError: The data has no bytes.
        """
        offset = operator.index(offset)
        rest = memoryview(data).cast("B")
        self._check(offset, len(rest))
        fd = self.device.fileno()
        position = self._offset + offset
        while rest:
            try:
                done = os.pwrite(fd, rest, position)
            except OSError as error:
                raise ioctl_error("pwrite", error.errno or 0, repr(self)) from None
            rest = rest[done:]
            position += done

    def map(self, offset: int = 0, length: int | None = None) -> Window:
        """Map part of the region for register access.

        The window keeps the device bound until it is closed; closing the device closes it.

        Args:
            offset: Bytes from the start of the region, on a page boundary.
            length: Bytes; all the rest when left out.

        Raises:
            UnsupportedError: This region cannot be mapped, or is not there.
            ValueError: The range is empty, not within the region, or does not begin on a page boundary.
            IoctlError: The kernel refused the mmap.
            ClosedError, ForkedError: As for `read`.
        """
        fd = self.device.fileno()
        offset = operator.index(offset)
        length = self.size - offset if length is None else operator.index(length)
        if not self.flags & RegionFlag.MMAP:
            raise UnsupportedError("mmap", errno.EOPNOTSUPP, f"{self!r}, which cannot be mapped; use read and write")
        self._check(offset, length)
        if not length:
            raise ValueError("a window has at least one byte")
        if offset % mmap.PAGESIZE:
            raise ValueError(f"offset {offset:#x} is not on a page boundary of {mmap.PAGESIZE} bytes")
        handle = ioctls.window_map(
            fd,
            self._offset + offset,
            length,
            readable=bool(self.flags & RegionFlag.READ),
            writeable=bool(self.flags & RegionFlag.WRITE),
        )
        window = Window(self, handle, offset, length)
        self.device.remember_window(window)
        return window

    def __repr__(self) -> str:
        return f"<Region {self.index} of {self.device.name}>"
