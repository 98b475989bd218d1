"""The display of a device, such as a mediated GPU: its planes, and where their pixels are."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pyiommufd import uapi
from pyiommufd.errors import IoctlError, UnsupportedError, ioctl_error
from pyiommufd.kernel.handle import Handle
from pyiommufd.printable import OneLine
from pyiommufd.uapi import device_ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device

_QUERY, _GET = "VFIO_DEVICE_QUERY_GFX_PLANE", "VFIO_DEVICE_GET_GFX_DMABUF"


class PixelSource(IntFlag):
    """Where the pixels of a plane are (VFIO_GFX_PLANE_TYPE_*)."""

    DMABUF = uapi.VFIO_GFX_PLANE_TYPE_DMABUF
    """In a dma-buf; see `Graphics.dma_buf`."""
    REGION = uapi.VFIO_GFX_PLANE_TYPE_REGION
    """In a region of the device."""


class PlaneType(IntEnum):
    """The kinds of planes (DRM_PLANE_TYPE_*, Linux 7.3, include/drm/drm_plane.h)."""

    OVERLAY = 0
    PRIMARY = 1
    CURSOR = 2


@dataclass(frozen=True, slots=True, repr=False)
class GraphicsPlane(OneLine):
    """A plane of a display as it was when it was asked for (struct vfio_device_gfx_plane_info).

    Attributes:
        type: Which plane.
        drm_format: The format of its pixels, DRM's number; see `fourcc`.
        modifier: How these are laid out, DRM's number; 0: in lines.
        width: Pixels.
        height: Lines.
        stride: Bytes from the start of a line to that of the next one.
        size: Bytes of all.
        position: Where on the display it begins, x and y in pixels.
        hot_spot: Of a cursor, where in it the place is that it points to, x and y in pixels.
        region_index: The number of the region that the pixels are in, from its start; None: they are in a dma-buf.
        dma_buf_id: The device's number of that dma-buf, which changes with the mode; None: they are in a region.
    """

    type: PlaneType
    drm_format: int
    modifier: int
    width: int
    height: int
    stride: int
    size: int
    position: tuple[int, int]
    hot_spot: tuple[int, int]
    region_index: int | None
    dma_buf_id: int | None

    @property
    def fourcc(self) -> str:
        """The format in DRM's four letters, such as ``XR24``: 4 bytes, blue, green, red and one that is not used."""
        return self.drm_format.to_bytes(4, "little").decode("latin-1")

    def _line(self) -> str:
        where = f"region {self.region_index}" if self.dma_buf_id is None else f"dma-buf {self.dma_buf_id}"
        return f"{self.type.name} {self.width}x{self.height} {self.fourcc}, in {where}"


class PlaneBuffer(Handle):
    """The pixels of a plane as a dma-buf. Made by `Graphics.dma_buf`.

    Its ``fileno`` is for a program that displays it by a GPU. Whether it can be mapped (`mmap.mmap`, of ``plane.size``
    bytes) is up to the driver: one of the sample mbochs cannot. An IOAS takes none of these. Closing the device closes
    it; dropped without being closed, it is closed with a `ResourceWarning`.

    Thread safety: everything here may be used from any thread.

    Attributes:
        device: The device.
        plane: The plane, as it was when this was made.
    """

    __slots__ = ("device", "plane")

    def __init__(self, device: Device, plane: GraphicsPlane) -> None:
        self.device = device
        self.plane = plane
        super().__init__()

    def __repr__(self) -> str:
        return f"<PlaneBuffer {self.plane.dma_buf_id} of {self.device.name}{' closed' if self.closed else ''}>"


class Graphics:
    """The display of a bound device. Made by `Device.graphics`, whether or not it has one.

    Thread safety: everything here may be used from any thread.
    """

    __slots__ = ("_device",)

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def sources(self) -> PixelSource:
        """Where the pixels of its planes can be; none: it has no display that its driver shows.

        Raises:
            IoctlError: The kernel refused for another reason.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        return PixelSource(sum(source for source in PixelSource if self._supports(source)))

    def _supports(self, source: PixelSource) -> bool:
        try:
            device_ioctls.gfx_plane(self._device._live(), source | uapi.VFIO_GFX_PLANE_TYPE_PROBE, 0)
        except IoctlError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return False
            raise ioctl_error(_QUERY, error.errno or 0, self._device.name) from None
        return True

    def plane(
        self, plane_type: PlaneType = PlaneType.PRIMARY, source: PixelSource | None = None
    ) -> GraphicsPlane | None:
        """A plane as it is now (VFIO_DEVICE_QUERY_GFX_PLANE); None: nothing is shown on it.

        Args:
            plane_type: Which one.
            source: Where its pixels are to be; None: where the device has them.

        Raises:
            UnsupportedError: The device has no display, or not with its pixels there.
            IoctlError: The kernel refused; ENOMEM also from the sample driver mbochs for the first query of each mode.
            ValueError: The device has its pixels in more than one place, or that is no such plane.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        plane_type, fd = PlaneType(plane_type), self._device._live()
        there = self.sources
        wanted = there if source is None else PixelSource(source)
        if not wanted or wanted not in there:
            raise UnsupportedError(_QUERY, errno.EOPNOTSUPP, f"{self._device.name}, which has {_words(there)}")
        if wanted not in list(PixelSource):
            raise ValueError(f"{self._device.name} has {_words(there)}: name one as source")
        try:
            info = device_ioctls.gfx_plane(fd, wanted, plane_type)
        except IoctlError as error:
            self._device._live()  # raises where it was closed meanwhile
            raise ioctl_error(_QUERY, error.errno or 0, f"{plane_type.name} of {self._device.name}") from None
        if not info["drm_format"] or not info["size"]:
            return None
        place = info["region_index"]
        return GraphicsPlane(
            plane_type,
            info["drm_format"],
            info["drm_format_mod"],
            info["width"],
            info["height"],
            info["stride"],
            info["size"],
            (info["x_pos"], info["y_pos"]),
            (info["x_hot"], info["y_hot"]),
            region_index=place if wanted is PixelSource.REGION else None,
            dma_buf_id=place if wanted is PixelSource.DMABUF else None,
        )

    def dma_buf(self, plane: GraphicsPlane) -> PlaneBuffer:
        """The dma-buf that has the pixels of a plane (VFIO_DEVICE_GET_GFX_DMABUF).

        Raises:
            NotFoundError: There is no such dma-buf any more: the plane has changed.
            ValueError: The pixels are in a region.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        if plane.dma_buf_id is None:
            raise ValueError(f"the pixels are in region {plane.region_index} of {self._device.name}: read or map that")
        buffer = PlaneBuffer(self._device, plane)
        try:
            self._device._open(buffer, device_ioctls.gfx_dma_buf, plane.dma_buf_id)
        except IoctlError as error:
            target = f"{self._device.name}, dma-buf {plane.dma_buf_id}"
            raise ioctl_error(_GET, error.errno or 0, target) from None
        return buffer

    def __repr__(self) -> str:
        return f"<Graphics of {self._device.name}>"


def _words(sources: PixelSource) -> str:
    return f"its pixels in {sources.name}" if sources else "no display"
