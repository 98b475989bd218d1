"""A device's regions: its BARs, ROM and configuration space."""

from __future__ import annotations

import contextlib
import errno
import mmap
import operator
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pyiommufd import uapi
from pyiommufd.diagnose.device_requests import bytes_error, no_region
from pyiommufd.errors import IoctlError, UnsupportedError
from pyiommufd.kernel.device.device_info import DeviceFlag, MmapArea, MSIXMappable, mappable_areas, region_capabilities
from pyiommufd.kernel.device.window import Window
from pyiommufd.kernel.interrupts.eventfd import EventFD
from pyiommufd.kernel.interrupts.ioeventfd import IOEventFD, start_ioeventfd
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

    def __init__(self, device: Device, index: int) -> None:
        index = operator.index(index)
        if not 0 <= index <= 0xFFFF_FFFF:
            raise ValueError(f"{index} is no index of a region")
        flags, self.size, self.file_offset, self._chain = device_ioctls.region_info(device._live(), index)
        self.flags = RegionFlag(flags)
        self.device = device
        self.index = index

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            if not self.size:
                raise ValueError(str(no_region(self.device.name, self.index, list(self.device.regions))))
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
        offset, size = operator.index(offset), operator.index(size)
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
        offset = operator.index(offset)
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
        return bytes_error(error.request, error.errno or 0, repr(self), decodes=decodes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index} of {self.device.name}>"


class Region(RegionBytes):
    """A region of a bound device (VFIO_DEVICE_GET_REGION_INFO). Made by `Device.region`.

    Thread safety: everything here may be used from any thread.

    Attributes:
        capabilities: What more the kernel tells of it: `SparseMmap`, `RegionType`, `MSIXMappable`.
    """

    __slots__ = ("capabilities",)

    def __init__(self, device: Device, index: int) -> None:
        super().__init__(device, index)
        self.capabilities = region_capabilities(self._chain)

    @property
    def mappable(self) -> tuple[MmapArea, ...]:
        """The parts of it that can be mapped; none: it cannot be at all.

        All of it, unless the kernel says otherwise (VFIO_REGION_INFO_CAP_SPARSE_MMAP), or does not let the pages that
        hold the MSI-X table be mapped.

        Raises:
            IoctlError, ClosedError, ForkedError: As for `read`.
        """
        if not self.flags & RegionFlag.MMAP:
            return ()
        return mappable_areas(self.size, self.capabilities, self._msix_table(), mmap.PAGESIZE)

    def _msix_table(self) -> MmapArea | None:
        from pyiommufd.kernel.device.config_space import CapabilityID

        if self.index > RegionIndex.BAR5 or any(isinstance(one, MSIXMappable) for one in self.capabilities):
            return None
        try:
            config = self.device.config
        except UnsupportedError:  # it is not a PCI device
            return None
        msix = config.find(CapabilityID.MSIX)
        if msix is None:
            return None
        entries = (config.read16(msix.offset + 2) & 0x7FF) + 1
        table = config.read32(msix.offset + 4)
        return MmapArea(table & ~7, 16 * entries) if table & 7 == self.index else None

    def map(self, offset: int = 0, length: int | None = None) -> Window:
        """Map part of the region for register access.

        The window keeps the device bound until it is closed; closing the device closes it.

        Args:
            offset: Bytes from the start of the region, on a page boundary.
            length: Bytes; when left out, all the rest of the region, or of the one of its `mappable` areas.

        Raises:
            UnsupportedError: This region cannot be mapped, or is not there; then it names those that are.
            TypeError: The numbers are no ints.
            ValueError: The range is empty, not within the region, not within one of its `mappable` areas, or does not
                begin on a page boundary.
            IoctlError: The kernel refused the mmap.
            ClosedError, ForkedError: As for `read`.
        """
        self.device._live()
        offset = operator.index(offset)
        length = None if length is None else operator.index(length)
        if not self.size:
            cause = no_region(self.device.name, self.index, list(self.device.regions))
            raise UnsupportedError("mmap", errno.EOPNOTSUPP, repr(self), (cause,))
        areas = self.mappable
        if not areas:
            raise UnsupportedError("mmap", errno.EOPNOTSUPP, f"{self!r}, which cannot be mapped; use read and write")
        if length is None:
            ends = [area.offset + area.length for area in areas if area.offset <= offset < area.offset + area.length]
            length = (ends[0] if ends else self.size) - offset
        self._check(offset, length)
        if not length:
            raise ValueError("a window has at least one byte")
        if offset % mmap.PAGESIZE:
            raise ValueError(f"offset {offset:#x} is not on a page boundary of {mmap.PAGESIZE} bytes")
        if not any(area.offset <= offset and offset + length <= area.offset + area.length for area in areas):
            parts = ", ".join(map(str, areas))
            raise ValueError(f"{length:#x} bytes at {offset:#x} of {self!r} cannot be mapped; these parts can: {parts}")
        window = Window(self, offset, length)
        # On record before it is mapped: whatever is raised in between, closing the device unmaps it. The lock keeps
        # another thread from closing the device meanwhile.
        with self.device.iommufd._lock:
            self.device._children[window] = None
            try:
                window._map(readable=bool(self.flags & RegionFlag.READ), writeable=bool(self.flags & RegionFlag.WRITE))
            except BaseException:
                window.close()
                raise
        return window

    def ioeventfd(self, offset: int, width: int, value: int, eventfd: EventFD | int | None = None) -> IOEventFD:
        """Have the kernel write a value to a register at each signal of an eventfd (VFIO_DEVICE_IOEVENTFD).

        Args:
            offset: Bytes from the start of the region, a multiple of the width.
            width: Bytes: 1, 2, 4 or 8.
            value: What to write.
            eventfd: At whose signals: an eventfd of the caller's such as KVM's, which is never closed here and need
                not stay open; None: one is made.

        Returns:
            The eventfd, which the device owns.

        Raises:
            ValueError, TypeError: The range is not within the region, the value does not fit, or it is no eventfd.
            AlreadyMappedError: There is one that writes the same there; `causes` names it.
            IoctlError: EINVAL: the region is no BAR, or holds the MSI-X table there; ENOSPC: there are too many.
            ClosedError, ForkedError: As for `read`.
        """
        offset, width, value = operator.index(offset), operator.index(width), operator.index(value)
        if width not in (1, 2, 4, 8):
            raise ValueError(f"a register has 1, 2, 4 or 8 bytes, not {width}")
        self._check(offset, width)
        if offset % width:
            raise ValueError(f"offset {offset:#x} is not a multiple of the register's {width} bytes")
        if not 0 <= value < 1 << (8 * width):
            raise ValueError(f"{value:#x} does not fit {width} bytes")
        return start_ioeventfd(self, offset, width, value, eventfd)


def read_regions(device: Device) -> dict[int, Region]:
    """The regions of a device that have any bytes: what `Device.regions` is."""
    info = device.info()
    found: dict[int, Region] = {}
    for index in range(info.num_regions):
        try:
            region = Region(device, index)
        except IoctlError as error:
            if error.errno != errno.EINVAL:  # numbers are left out, as VGA's is by most PCI devices
                raise
            continue
        if region.size:
            named = info.flags & DeviceFlag.PCI and index <= RegionIndex.VGA
            found[RegionIndex(index) if named else index] = region
    return found
