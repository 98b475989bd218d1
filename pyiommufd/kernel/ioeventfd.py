"""A register write that the kernel makes at each signal of an eventfd."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from ..diagnose.interrupts import ioeventfd_error
from ..errors import IoctlError
from ..uapi import device_ioctls
from .eventfd import EventFD

if TYPE_CHECKING:
    from .region import Region


class IOEventFD(EventFD):
    """An eventfd each signal of which writes a value to a register. Made by `Region.ioeventfd`.

    The kernel reads it, so that nobody can wait here (ValueError). Several signals before that are one write. Nothing
    is written while memory decode is off.

    The device owns it: it is closed with the device. Where it is an eventfd of the caller's, that one stays open.

    Attributes:
        region: The region.
        offset: Where in it, in bytes.
        width: Bytes.
        value: What is written.
    """

    __slots__ = ("offset", "region", "value", "width")

    _reader = "the kernel"

    def __init__(
        self, region: Region, offset: int, width: int, value: int, eventfd: EventFD | int | None = None
    ) -> None:
        self.region = region
        self.offset = offset
        self.width = width
        self.value = value
        super().__init__(eventfd)
        self._file.wake = -1  # there is nobody to be woken by its close; and to the kernel that would be a signal

    @property
    def place(self) -> tuple[int, int, int]:
        """Where in the device file it writes, how many bytes, and what: the kernel takes each such write once."""
        return self.region.file_offset + self.offset, self.width, self.value

    def close(self) -> None:
        """Let its signals write nothing any more (VFIO_DEVICE_IOEVENTFD with fd -1).

        Raises:
            IoctlError: The kernel refused. It is closed all the same.
        """
        device = self.region.device
        if self.closed or self.in_child or device.closed:
            super().close()  # also where a signal handler interrupted the first one
            device.interrupts._forget(self)
            return
        with device.interrupts._lock:
            if self not in device.interrupts.ioeventfds:  # another thread has closed it
                return
            try:
                self._stop()
            except BaseException:
                # Maybe a signal handler's, from before the kernel has stopped or after.
                with contextlib.suppress(IoctlError):
                    self._stop()
                raise
            finally:
                super().close()
                device.interrupts._forget(self)

    def _stop(self) -> None:
        try:
            device_ioctls.ioeventfd(self.region.device._live(), *self.place, -1)
        except IoctlError as error:
            if error.errno != errno.ENODEV:  # the kernel has none: an interrupted call has come that far
                raise

    def __repr__(self) -> str:
        state = " closed" if self.closed else " on the caller's eventfd" if self.lent else ""
        return f"<IOEventFD {_what(self.region, self.offset, self.width, self.value)}{state}>"


def start_ioeventfd(
    region: Region, offset: int, width: int, value: int, eventfd: EventFD | int | None = None
) -> IOEventFD:
    """Have the kernel write from now on; see `Region.ioeventfd`."""
    device = region.device
    what = _what(region, offset, width, value)
    with device.interrupts._lock:
        fd = device.interrupts._live()
        place = (region.file_offset + offset, width, value)
        # Looked for here, too: below this, what is undone after an interruption must be no other one's write.
        for other in device.interrupts.ioeventfds:
            if other.place == place and not other.closed:
                raise ioeventfd_error(errno.EEXIST, what, repr(other))
        event = IOEventFD(region, offset, width, value, eventfd)
        try:
            device.interrupts._remember(event)
            device_ioctls.ioeventfd(fd, *place, event.fileno())
        except IoctlError as error:
            # Not by way of close, which might undo another process's that writes the same.
            EventFD.close(event)
            device.interrupts._forget(event)
            raise ioeventfd_error(error.errno or 0, what) from None
        except BaseException:
            # A signal handler raised, maybe after the kernel had taken it.
            event.close()
            EventFD.close(event)
            raise
        return event


def _what(region: Region, offset: int, width: int, value: int) -> str:
    return f"{value:#x} ({width} bytes) at {offset:#x} of region {region.index} of {region.device.name}"
