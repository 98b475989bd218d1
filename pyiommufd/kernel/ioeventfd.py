"""A register write that the kernel makes at each signal of an eventfd."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..errors import IoctlError
from ..uapi import device_ioctls
from .eventfd import EventFD

if TYPE_CHECKING:
    from .region import Region


class IOEventFD(EventFD):
    """An eventfd each signal of which writes a value to a register. Made by `Region.ioeventfd`.

    Several signals before the kernel gets to it are one write. Nothing is written while memory decode is off.

    The device owns it: it is closed with the device.

    Attributes:
        region: The region.
        offset: Where in it, in bytes.
        width: Bytes.
        value: What is written.
    """

    __slots__ = ("offset", "region", "value", "width")

    def __init__(self, region: Region, offset: int, width: int, value: int) -> None:
        super().__init__()
        self.region = region
        self.offset = offset
        self.width = width
        self.value = value

    def close(self) -> None:
        """Let its signals write nothing any more (VFIO_DEVICE_IOEVENTFD with fd -1).

        Raises:
            IoctlError: The kernel refused. It is closed all the same.
        """
        if self.closed:
            return
        device = self.region.device
        if self.in_child or device.closed:
            super().close()
            return
        device._forget_child(self)
        try:
            device_ioctls.ioeventfd(device._live(), self.region.file_offset + self.offset, self.width, self.value, -1)
        finally:
            super().close()

    def start(self) -> None:
        """Have the kernel write from now on; on failure the eventfd is closed."""
        device = self.region.device
        device._remember_child(self)
        try:
            device_ioctls.ioeventfd(
                device._live(), self.region.file_offset + self.offset, self.width, self.value, self.fileno()
            )
        except IoctlError:
            # Not by way of close, which might undo another one that writes the same.
            device._forget_child(self)
            super().close()
            raise
        except BaseException:
            # A signal handler raised, maybe after the kernel had taken it.
            with contextlib.suppress(IoctlError):
                self.close()
            raise

    def __repr__(self) -> str:
        what = f"{self.width} bytes {self.value:#x} at {self.offset:#x} of {self.region!r}"
        return f"<IOEventFD {what}{' closed' if self.closed else ''}>"
