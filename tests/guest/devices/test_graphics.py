"""The planes of displays, of the kernel's samples: mdpy has its pixels in a region, mbochs in dma-bufs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    ClosedError,
    Device,
    GraphicsPlane,
    IoctlError,
    NotFoundError,
    PixelSource,
    PlaneBuffer,
    PlaneType,
    RegionIndex,
    UnsupportedError,
)
from tests.guest.devices.mediated import Maker
from tests.guest.devices.mediated import make as make
from tests.guest.devices.mediated import sample_drivers as sample_drivers

XR24 = "XR24"
REGISTERS = 0x500
"""Where in BAR 2 those of the Bochs display are, of 2 bytes each."""
WIDTH, HEIGHT, DEPTH, ENABLE = 1, 2, 3, 4


@pytest.fixture
def mbochs(make: Maker, iommufd: IOMMUFD) -> Device:
    return iommufd.bind(make("mbochs", "mbochs-small"))


def set_mode(device: Device, width: int, height: int) -> None:
    registers = device.region(RegionIndex.BAR2)
    for register, value in ((WIDTH, width), (HEIGHT, height), (DEPTH, 32), (ENABLE, 1)):
        registers.write(REGISTERS + 2 * register, struct.pack("<H", value))


def shown(device: Device, width: int, height: int) -> GraphicsPlane:
    """The primary plane in a new mode, the first query of which mbochs refuses."""
    set_mode(device, width, height)
    with pytest.raises(IoctlError, match="mbochs") as caught:
        device.graphics.plane()
    assert caught.value.errno == errno.ENOMEM
    plane = device.graphics.plane()
    assert plane is not None
    return plane


def test_pixels_in_a_region(make: Maker, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(make("mdpy", "mdpy-vga"))
    assert device.graphics.sources == PixelSource.REGION
    plane = device.graphics.plane()
    assert plane is not None
    assert (plane.type, plane.fourcc, plane.width, plane.height) == (PlaneType.PRIMARY, XR24, 640, 480)
    assert plane.region_index is not None
    assert plane.region_index > RegionIndex.VGA  # one of its own; BAR 0 has the same memory
    assert (plane.stride, plane.dma_buf_id) == (640 * 4, None)
    assert repr(plane) == f"<GraphicsPlane PRIMARY 640x480 XR24, in region {plane.region_index}>"
    # By windows: pread of mdpy reads the first pixels, whatever the offset.
    with device.region(RegionIndex.BAR0).map() as memory, device.region(plane.region_index).map() as pixels:
        assert pixels.length >= plane.stride * plane.height
        memory.write32(plane.stride, 0x00C0FFEE)
        assert pixels.read32(plane.stride) == 0x00C0FFEE
    with pytest.raises(UnsupportedError, match="its pixels in REGION"):
        device.graphics.plane(source=PixelSource.DMABUF)
    with pytest.raises(ValueError, match=f"in region {plane.region_index}"):
        device.graphics.dma_buf(plane)


def test_pixels_in_a_dma_buf(mbochs: Device) -> None:
    assert mbochs.graphics.sources == PixelSource.DMABUF
    assert mbochs.graphics.plane() is None  # no mode is set
    plane = shown(mbochs, 640, 480)
    assert (plane.fourcc, plane.width, plane.height, plane.size) == (XR24, 640, 480, 640 * 480 * 4)
    assert plane.region_index is None
    assert mbochs.graphics.plane(PlaneType.CURSOR) is None
    with mbochs.graphics.dma_buf(plane) as buffer:
        fd = buffer.fileno()
        assert not os.get_inheritable(fd)
        assert os.lseek(fd, 0, os.SEEK_END) == plane.size
        assert "exp_name:\tmbochs" in Path(f"/proc/self/fdinfo/{fd}").read_text()
        # For the driver of a GPU to import: mbochs gives it out for reading, and lets nobody map what is so.
        with pytest.raises(OSError, match="Invalid argument"):
            mmap.mmap(fd, plane.size, prot=mmap.PROT_READ)
        with pytest.raises(UnsupportedError, match="export_dma_buf"):
            mbochs.iommufd.alloc_ioas().map_file(buffer, plane.size)
        assert repr(buffer) == f"<PlaneBuffer {plane.dma_buf_id} of {mbochs.name}>"
    assert buffer.closed


def test_device_closes_its_dma_bufs(mbochs: Device) -> None:
    plane = shown(mbochs, 64, 64)
    buffer = mbochs.graphics.dma_buf(plane)
    fd = buffer.fileno()
    mbochs.close()
    assert buffer.closed
    assert not Path(f"/proc/self/fd/{fd}").exists()
    with pytest.raises(ClosedError):
        buffer.fileno()
    with pytest.raises(ClosedError):
        mbochs.graphics.plane()


class Interrupt(BaseException):
    """Raised as from a signal handler."""


def raised_at(point: int, call: Callable[[], object]) -> bool:
    """Call something, and raise at its so many-th line; whether it has that many."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "line" and next(lines) == point:
            raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def dma_bufs() -> list[str]:
    """The fds of dma-bufs that this process has."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            if str(fd.readlink()).startswith("/dmabuf"):
                found.append(fd.name)
    return found


# Of what was made and not yet given to anybody.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_fd_is_lost_wherever_a_signal_handler_raises(mbochs: Device) -> None:
    plane = shown(mbochs, 64, 64)
    kept: list[PlaneBuffer] = []
    points = next(
        at for at in itertools.count() if not raised_at(at, lambda: kept.append(mbochs.graphics.dma_buf(plane)))
    )
    assert points > 10
    assert len(dma_bufs()) == len(mbochs._children) == len(kept) == 1
    mbochs.close()
    assert dma_bufs() == []


def test_dma_buf_of_a_mode_that_is_over(mbochs: Device) -> None:
    first = shown(mbochs, 64, 64)
    second = shown(mbochs, 128, 64)
    assert first.dma_buf_id != second.dma_buf_id
    gone = GraphicsPlane(PlaneType.PRIMARY, first.drm_format, 0, 64, 64, 256, 1 << 14, (0, 0), (0, 0), None, 4711)
    with pytest.raises(NotFoundError, match="no such dma-buf any more"):
        mbochs.graphics.dma_buf(gone)


def test_device_without_a_display(make: Maker, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(make("mtty", "mtty-1"))
    assert device.graphics.sources == PixelSource(0)
    with pytest.raises(UnsupportedError, match="no display"):
        device.graphics.plane()
