"""Which pages a device has written to, noted by the device itself."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyiommufd.errors import Cause, IoctlError
from pyiommufd.kernel.device.features.feature import DeviceFeature, Feature, FeatureAccess
from pyiommufd.kernel.memory.arguments import U64_MAX, address_ranges, check_range, whole
from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.kernel.pagetables.dirty_bitmap import DirtyBitmap
from pyiommufd.uapi import device_ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device


class DMALogging:
    """The log of a device's own DMA writes (VFIO_DEVICE_FEATURE_DMA_LOGGING_START). It is `Device.dma_logging`.

    Drivers of devices that can migrate have it, such as mlx5's; where the IOMMU notes writes, `HWPT.dirty_bitmap` does
    the same without the device's help. The log ends with the bind.

    Thread safety: everything here may be used from any thread.
    """

    __slots__ = ("_device", "_page_size")

    def __init__(self, device: Device) -> None:
        self._device = device
        self._page_size: int | None = None

    def start(self, ranges: Iterable[IOVARange | tuple[int, int]], page_size: int = 4096) -> int:
        """Log writes to these addresses from now on (VFIO_DEVICE_FEATURE_DMA_LOGGING_START).

        Args:
            ranges: `IOVARange` objects, such as `DirtyBitmap.ranges` yields, or pairs of the first and the inclusive
                last address: whole pages, which do not overlap. The device may log more.
            page_size: Bytes that are to be told apart: a power of two, 4096 at least.

        Returns:
            The page size that the device uses; it may be another one.

        Raises:
            UnsupportedError: The device keeps no log.
            IoctlError: The kernel refused: E2BIG: too many ranges (Linux 7.3 takes 256 with pages of 4 KiB).
            ValueError: There is no range, two overlap, one does not begin and end on pages of that size, or that is no
                page size.
            TypeError: A range is neither, or the page size is no int.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        fd, page_size = self._device._live(), _page_size(page_size)
        pairs = sorted(address_ranges(ranges))
        if not pairs:
            raise ValueError("there is no range to log")
        for start, last in pairs:
            if last == U64_MAX:  # to the kernel it would have no end
                raise ValueError(f"{IOVARange(start, last)} ends with the last address, up to which no device logs")
            if start % page_size or (last + 1) % page_size:
                raise ValueError(f"{IOVARange(start, last)} does not begin and end on pages of {page_size:#x} bytes")
        for (_, last), (start, _) in itertools.pairwise(pairs):
            if start <= last:
                raise ValueError(f"the ranges overlap at {start:#x}")
        try:
            used = device_ioctls.dma_logging_start(fd, page_size, [(one, last - one + 1) for one, last in pairs])
        except IoctlError as error:
            raise self._refused(error, DeviceFeature.DMA_LOGGING_START, FeatureAccess.SET, len(pairs)) from None
        self._page_size = used
        return used

    def report(self, iova: int, length: int, page_size: int | None = None) -> DirtyBitmap:
        """The pages that the device has written to since the start, or since they were last reported.

        VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT.

        Args:
            iova: The first address, a multiple of the page size.
            length: Bytes, likewise; within what is logged.
            page_size: Bytes that a bit stands for: a power of two, 4096 at least; None: what `start` returned.

        Raises:
            UnsupportedError: The device keeps no log.
            IoctlError: The kernel refused.
            ValueError: The numbers are no such range or page size; or the page size was left out, and `start` has not
                been called on this object.
            TypeError: A number is no int.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        fd, (iova, length) = self._device._live(), check_range(iova, length)
        if page_size is None and self._page_size is None:
            raise ValueError("start() the log first, or say with which page_size another process has started it")
        size = _page_size(page_size if page_size is not None else self._page_size)
        if iova % size or length % size:
            raise ValueError(f"iova {iova:#x} and length {length:#x} have to be multiples of the page size {size:#x}")
        if iova + length > U64_MAX:
            raise ValueError(
                f"{length:#x} bytes at iova {iova:#x} end with the last address, or later: no device logs it"
            )
        try:
            return DirtyBitmap(iova, length, size, device_ioctls.dma_logging_report(fd, iova, length, size))
        except IoctlError as error:
            raise self._refused(error, DeviceFeature.DMA_LOGGING_REPORT, FeatureAccess.GET) from None

    def stop(self) -> None:
        """End the log (VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP).

        Raises:
            UnsupportedError: The device keeps no log.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        Feature(self._device, DeviceFeature.DMA_LOGGING_STOP).set()
        self._page_size = None

    def _refused(self, error: IoctlError, number: int, access: FeatureAccess, ranges: int = 0) -> IoctlError:
        causes: tuple[Cause, ...] = ()
        if error.errno == errno.E2BIG:
            causes = (Cause("the kernel does not take as many ranges at once", f"{ranges} ranges", "combine some"),)
        return Feature(self._device, number).refused(error, access, causes)

    def __repr__(self) -> str:
        return f"<DMALogging of {self._device.name}>"


def _page_size(size: int | None) -> int:
    size = whole(size or 0, "page_size")
    if size < 4096 or size & (size - 1):
        raise ValueError(f"a page size is a power of two, 4096 at least, not {size}")
    return size
