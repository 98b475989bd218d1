"""A device's regions: its BARs, ROM and configuration space (VFIO_DEVICE_GET_REGION_INFO)."""

from __future__ import annotations

import contextlib
import errno
import mmap
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import Cause, IoctlError, IOMMUFDError, UnsupportedError
from pyiommufd.host.discovery.power import runtime_status
from pyiommufd.kernel.device.config_space import CapabilityID
from pyiommufd.kernel.device.device_info import (
    MmapArea,
    MSIXMappable,
    RegionCapability,
    mappable_areas,
    region_capabilities,
)
from pyiommufd.kernel.device.features.dma_buf import DMABuf, export_dma_buf
from pyiommufd.kernel.device.region_bytes import RegionBytes, RegionFlag, RegionIndex
from pyiommufd.kernel.interrupts.eventfd import EventFD
from pyiommufd.kernel.interrupts.ioeventfd import IOEventFD, start_ioeventfd
from pyiommufd.kernel.memory.arguments import whole
from pyiommufd.kernel.window import Window

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device

_FIRST_BAR = 0x10  # in the configuration space
_IO_SPACE = 1


class Region(RegionBytes):
    """A region of a bound device (VFIO_DEVICE_GET_REGION_INFO). Made by `Device.region`.

    Thread safety: everything here may be used from any thread.

    Attributes:
        capabilities: Further properties: `SparseMmap`, `RegionType`, `MSIXMappable`.
    """

    __slots__ = ("capabilities",)

    capabilities: tuple[RegionCapability, ...]

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

        The window keeps the device bound until it is closed or dropped; closing the device closes it.

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
        offset = whole(offset, "offset")
        length = None if length is None else whole(length, "length")
        if not self.size:
            cause = diagnose.no_region(self.device.name, self.index, list(self.device.regions))
            raise UnsupportedError("mmap", errno.EOPNOTSUPP, repr(self), (cause,))
        areas = self.mappable
        if not areas:
            cause = Cause("it cannot be mapped", "its mappable is empty", "use read() and write()")
            raise UnsupportedError("mmap", errno.EOPNOTSUPP, repr(self), (cause,))
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

    @property
    def _file_owner(self) -> Device:
        """See `Mappable`."""
        return self.device

    def _why_silent(self) -> str:
        """See `Mappable`. To ask does not wake the device."""
        if runtime_status(self.device.host).startswith("suspend"):
            return "it sleeps; low_power.exit() wakes it"
        with contextlib.suppress(IOMMUFDError):
            if not self.device.memory_decode:
                return "its memory decode is off; set memory_decode to True"
        return "it is in low power, which low_power.exit() ends, is being reset, or is gone"

    def export_dma_buf(self, offset: int = 0, length: int | None = None) -> DMABuf:
        """Make a dma-buf of part of a BAR, so that other devices reach it by DMA (VFIO_DEVICE_FEATURE_DMA_BUF).

        `IOAS.map_file` maps it for the devices of an address space. It can be exported while memory decode is off, and
        be mapped only while it is on.

        Args:
            offset: Bytes from the start of the BAR, on a page boundary.
            length: Bytes, a multiple of the page size; when left out, all the rest of the BAR.

        Returns:
            The dma-buf, which is the caller's to close; closing the device closes it, too.

        Raises:
            UnsupportedError: This kernel or device has no dma-bufs; or the region is not there, is no BAR, an I/O BAR
                or one smaller than a page. `causes` says which.
            TypeError: The numbers are no ints.
            ValueError: The range is empty, not within the BAR, or not on page boundaries.
            IoctlError: The kernel refused; ENODEV: another driver has claimed the BAR.
            ClosedError, ForkedError: As for `read`.
        """
        self.device._live()
        offset = whole(offset, "offset")
        length = self.size - offset if length is None else whole(length, "length")
        if cause := self._no_dma_buf():
            raise UnsupportedError("VFIO_DEVICE_FEATURE", errno.EOPNOTSUPP, repr(self), (cause,))
        self._check(offset, length)
        if not length:
            raise ValueError("a dma-buf has at least one page")
        return export_dma_buf(self, offset, length)

    def _no_dma_buf(self) -> Cause | None:
        """Why no part of the region can be a dma-buf, if that is so."""
        fix = "take a BAR of memory, of a page or more"
        if not self.size:
            return diagnose.no_region(self.device.name, self.index, list(self.device.regions))
        if self.index > RegionIndex.BAR5:
            return Cause("only a BAR can be a dma-buf", "", fix)
        # Of a memory BAR that cannot be mapped the kernel is asked: it may have another reason.
        if not self.flags & RegionFlag.MMAP and self._register() & _IO_SPACE:
            seen = f"bit 0 of its register in the configuration space is 1; {self.size:#x} bytes"
            return Cause("it is an I/O BAR, which can never be a dma-buf", seen, fix)
        if self.size < mmap.PAGESIZE:
            seen = f"{self.size:#x} bytes of {mmap.PAGESIZE:#x}"
            return Cause("it is smaller than a page, and so can never be a dma-buf", seen, fix)
        return None

    def _register(self) -> int:
        """The low half of the BAR; 0 where it is not a PCI device."""
        try:
            return self.device.config.read32(_FIRST_BAR + 4 * self.index)
        except UnsupportedError:
            return 0

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
        offset, width, value = whole(offset, "offset"), whole(width, "width"), whole(value, "value")
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
            named = info.flags & uapi.VFIO_DEVICE_FLAGS_PCI and index <= RegionIndex.VGA
            found[RegionIndex(index) if named else index] = region
    return found
