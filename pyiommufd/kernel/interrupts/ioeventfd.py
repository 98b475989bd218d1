"""A register write that the kernel makes at each signal of an eventfd."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyiommufd import diagnose
from pyiommufd.errors import IoctlError
from pyiommufd.kernel.interrupts.eventfd import EventFD
from pyiommufd.uapi import device_ioctls, ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.region import Region


class IOEventFD(EventFD):
    """An eventfd each signal of which writes a value to a register (VFIO_DEVICE_IOEVENTFD). Made by `Region.ioeventfd`.

    The kernel reads it, so that nobody can wait here (ValueError). Several signals before that are one write. Nothing
    is written while memory decode is off.

    The device owns it: it is closed with the device. Where it is an eventfd of the caller's, that one stays open.

    Thread safety: as for `EventFD`.

    Attributes:
        region: The region.
        offset: Where in it, in bytes.
        width: Bytes.
        value: What is written.
    """

    __slots__ = ("_on", "offset", "region", "value", "width")

    _reader = "the kernel"

    def __init__(
        self, region: Region, offset: int, width: int, value: int, eventfd: EventFD | int | None = None
    ) -> None:
        self.region = region
        self.offset = offset
        self.width = width
        self.value = value
        self._on = ioctls.new_cell("int")
        super().__init__(eventfd)

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
                if self._on[0]:
                    device_ioctls.ioeventfd(device._live(), *self.place, None, self._on)
            except IoctlError as error:
                self._on[0] = 0
                if error.errno != errno.ENODEV:  # another process that has the device has stopped it
                    raise
            finally:
                # Not where a signal handler raised before: there it stays on record, to be closed again.
                if not self._on[0]:
                    super().close()
                    device.interrupts._forget(self)

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
        event = IOEventFD(region, offset, width, value, eventfd)
        try:
            device.interrupts._remember(event)
            device_ioctls.ioeventfd(fd, *event.place, event._live(), event._on)
        except BaseException as error:
            event.close()
            EventFD.close(event)  # also where it was not on record yet
            if not isinstance(error, IoctlError):
                raise  # a signal handler's, maybe from after the kernel had taken it
            # Which one it is that the kernel has already, where it is one of this process.
            known = (repr(other) for other in device.interrupts.ioeventfds if other.place == event.place)
            raise diagnose.ioeventfd_error(error.errno or 0, what, next(known, "")) from None
        return event


def _what(region: Region, offset: int, width: int, value: int) -> str:
    return f"{value:#x} ({width} bytes) at {offset:#x} of region {region.index} of {region.device.name}"
