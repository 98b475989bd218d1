"""The bytes of a device's region, read and written by the kernel."""

from __future__ import annotations

import contextlib
import errno
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import IoctlError
from pyiommufd.kernel.memory.arguments import whole
from pyiommufd.uapi import device_ioctls, ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device


class RegionIndex(IntEnum):
    """The regions of a PCI device (VFIO_PCI_*_REGION_INDEX)."""

    BAR0 = uapi.VFIO_PCI_BAR0_REGION_INDEX
    BAR1 = uapi.VFIO_PCI_BAR1_REGION_INDEX
    BAR2 = uapi.VFIO_PCI_BAR2_REGION_INDEX
    BAR3 = uapi.VFIO_PCI_BAR3_REGION_INDEX
    BAR4 = uapi.VFIO_PCI_BAR4_REGION_INDEX
    BAR5 = uapi.VFIO_PCI_BAR5_REGION_INDEX
    ROM = uapi.VFIO_PCI_ROM_REGION_INDEX
    CONFIG = uapi.VFIO_PCI_CONFIG_REGION_INDEX
    VGA = uapi.VFIO_PCI_VGA_REGION_INDEX


class RegionFlag(IntFlag):
    """What can be done with a region (VFIO_REGION_INFO_FLAG_*)."""

    READ = uapi.VFIO_REGION_INFO_FLAG_READ
    WRITE = uapi.VFIO_REGION_INFO_FLAG_WRITE
    MMAP = uapi.VFIO_REGION_INFO_FLAG_MMAP
    CAPS = uapi.VFIO_REGION_INFO_FLAG_CAPS


class RegionBytes:
    """The bytes of a region, read and written by the kernel: what `Region` and `ConfigSpace` have in common.

    Thread safety: everything here may be used from any thread.

    Attributes:
        device: The device.
        index: The region's number; for PCI a `RegionIndex` says which.
        size: Bytes; 0 where the device has no such region.
        flags: What can be done with it.
        file_offset: Where in the device file it begins, in bytes.
    """

    __slots__ = ("__weakref__", "_chain", "device", "file_offset", "flags", "index", "size")

    size: int
    flags: RegionFlag
    file_offset: int

    def __init__(self, device: Device, index: int) -> None:
        index = whole(index, "the index of a region")
        if not 0 <= index <= 0xFFFF_FFFF:
            raise ValueError(f"{index} is not an index of a region")
        flags, self.size, self.file_offset, self._chain = device_ioctls.region_info(device._live(), index)
        self.flags = RegionFlag(flags)
        self.device = device
        self.index = index

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            if not self.size:
                raise ValueError(str(diagnose.no_region(self.device.name, self.index, list(self.device.regions))))
            raise ValueError(f"{size:#x} bytes at {offset:#x} are not within {self!r} of {self.size:#x} bytes")

    def read(self, offset: int, size: int) -> bytes:
        """Read by the kernel (pread), which wakes a sleeping device and never faults.

        How many bus accesses that takes is the kernel's choice; where it matters, use a `Window`.

        Args:
            offset: Bytes from the start of the region.
            size: Bytes.

        Raises:
            ValueError: The range is not within the region, or the region is not there; it names those that are.
            TypeError: The numbers are no ints.
            IoctlError: EIO: the device's memory decode is off; EINVAL: the region cannot be read.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        offset, size = whole(offset, "offset"), whole(size, "size")
        self._check(offset, size)
        data = bytearray()
        file = self.device._live()
        while len(data) < size:
            try:
                piece = ioctls.file_read(file, size - len(data), self.file_offset + offset + len(data))
            except IoctlError as error:
                raise self._failed(error) from None
            if not piece:
                raise self._failed(IoctlError("pread", errno.EIO))
            data += piece
        return bytes(data)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write by the kernel (pwrite). As for `read`.

        Args:
            offset: Bytes from the start of the region.
            data: What to write there.

        Raises:
            ValueError, IoctlError, ClosedError, ForkedError: As for `read`.
            TypeError: The data has no bytes, or the offset is no int.
        """
        offset = whole(offset, "offset")
        rest = memoryview(data).cast("B")
        self._check(offset, len(rest))
        file = self.device._live()
        position = self.file_offset + offset
        while rest:
            try:
                done = ioctls.file_write(file, rest, position)
            except IoctlError as error:
                raise self._failed(error) from None
            rest = rest[done:]
            position += done

    def _failed(self, error: IoctlError) -> IoctlError:
        self.device._live()  # raises where it was closed meanwhile
        decodes = None
        if error.errno == errno.EIO and self.index != RegionIndex.CONFIG:
            with contextlib.suppress(IoctlError):
                decodes = self.device.memory_decode
        return diagnose.bytes_error(error.request, error.errno or 0, repr(self), decodes=decodes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index} of {self.device.name}>"
