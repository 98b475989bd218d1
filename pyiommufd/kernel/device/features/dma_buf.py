"""Part of a device's BAR as a dma-buf, for other devices to reach it."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from pyiommufd.errors import IoctlError
from pyiommufd.kernel.device.features.feature import DeviceFeature, Feature, FeatureAccess
from pyiommufd.kernel.handle import Handle
from pyiommufd.uapi import device_ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.region import Region


class DMABuf(Handle):
    """Bytes of a BAR as a dma-buf (VFIO_DEVICE_FEATURE_DMA_BUF), for `IOAS.map_file`. Made by `Region.export_dma_buf`.

    Mappings of it hold it by themselves: it may be closed once it is mapped, and they stay. It does not keep its
    device bound: closing the device closes it, and revokes the mappings (`DMAMapping.revoked`). A process that was
    given its fd can map it, too, and nothing else can be done with it there. Dropped without being closed, it is
    closed with a `ResourceWarning`.

    Thread safety: everything here may be used from any thread.

    Attributes:
        region: The BAR.
        offset: Where in it the dma-buf begins, in bytes.
        size: Bytes.
    """

    __slots__ = ("offset", "region", "size")

    def __init__(self, region: Region, offset: int, size: int) -> None:
        self.region = region
        self.offset = offset
        self.size = size
        super().__init__()

    def _what(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<DMABuf {self.offset:#x}..{self.offset + self.size - 1:#x} of {self.region!r}{state}>"


def export_dma_buf(region: Region, offset: int, length: int) -> DMABuf:
    """Make a dma-buf of part of a region, on page boundaries; see `Region.export_dma_buf`."""
    for name, number in (("offset", offset), ("length", length)):
        if number % mmap.PAGESIZE:
            raise ValueError(
                f"the {name} {number:#x} is not on a page boundary of {mmap.PAGESIZE} bytes; {region!r} has "
                f"{region.size:#x} bytes"
            )
    device = region.device
    dma_buf = DMABuf(region, offset, length)
    try:
        device._open(dma_buf, device_ioctls.dma_buf, region.index, offset, length)
    except IoctlError as error:
        raise Feature(device, DeviceFeature.DMA_BUF).refused(error, FeatureAccess.GET) from None
    return dma_buf
