"""A mapped part of a device region, for register access."""

from __future__ import annotations

import errno
import operator
import threading
from typing import TYPE_CHECKING

from ..errors import ClosedError, RegionFaultError
from ..uapi.device_ioctls import FAILED, WindowHandle, window_read, window_unmap, window_write
from ..uapi.ioctls import last_errno
from .closing import Closing
from .handle import forked_error

if TYPE_CHECKING:
    from .region import Region


class Window(Closing):
    """A mapped part of a region. Made by `Region.map`.

    Each read and write is one bus access of exactly the width named. Offsets are in bytes from the window's start
    and multiples of the width. Values are in the CPU's byte order, which is a PCI device's on x86 and arm64.

    An access that the device does not answer (memory decode off, asleep, in reset, gone) raises
    `RegionFaultError`; the signal behind it (SIGBUS) reaches nobody else.

    Thread safety: accesses may be made from any thread. `close` waits for those under way, and later ones raise.

    Attributes:
        offset: Where in the region it begins, in bytes.
        length: Bytes.
    """

    __slots__ = ("__weakref__", "_handle", "_lock", "_region", "length", "offset")

    def __init__(self, region: Region, handle: WindowHandle, offset: int, length: int) -> None:
        self._region = region
        self._handle: WindowHandle | None = handle
        self._lock = threading.Lock()
        self.offset = offset
        self.length = length

    def read8(self, offset: int) -> int:
        """Read one byte. Raises as `read64` does."""
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        """Read 2 bytes by one access. Raises as `read64` does."""
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        """Read 4 bytes by one access. Raises as `read64` does."""
        return self._read(offset, 4)

    def read64(self, offset: int) -> int:
        """Read 8 bytes by one access.

        Raises:
            ValueError: The offset is not a multiple of the width, or the access reaches out of the window.
            TypeError: The offset is no int.
            RegionFaultError: The device does not answer.
            ClosedError, ForkedError: The window is closed, or belongs to the parent process.
        """
        return self._read(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """Write one byte. Raises as `write64` does."""
        self._write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Write 2 bytes by one access. Raises as `write64` does."""
        self._write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Write 4 bytes by one access. Raises as `write64` does."""
        self._write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """Write 8 bytes by one access.

        Raises:
            ValueError: As for `read64`, or the value is negative or does not fit the width.
            TypeError: The offset or the value is no int.
            RegionFaultError: The device does not answer.
            ClosedError, ForkedError: As for `read64`.
        """
        self._write(offset, 8, value)

    def _live(self) -> WindowHandle:
        handle = self._handle
        if handle is None:
            if self._region.device.in_child:
                raise forked_error(f"this {self!r}", self._region.device.pid)
            raise ClosedError(f"this {self!r} is closed")
        return handle

    def _mark_forked(self) -> None:
        """This process is a forked child, which does not have the mapping."""
        self._handle = None

    def _read(self, offset: int, width: int) -> int:
        handle = self._live()
        if type(offset) is not int:
            offset = operator.index(offset)  # C would take what has a fraction
        try:
            value = window_read(handle, offset, width)
        except OverflowError:
            raise self._out_of_range(offset, width) from None
        if value == FAILED and last_errno():
            raise self._failure(offset, width)
        return value

    def _write(self, offset: int, width: int, value: int) -> None:
        handle = self._live()
        if type(offset) is not int or type(value) is not int:
            offset, value = operator.index(offset), operator.index(value)
        if not 0 <= value < 1 << (8 * width):
            raise ValueError(f"{value:#x} does not fit {width} bytes")
        try:
            failed = window_write(handle, offset, width, value)
        except OverflowError:
            raise self._out_of_range(offset, width) from None
        if failed:
            raise self._failure(offset, width)

    def _failure(self, offset: int, width: int) -> Exception:
        code = last_errno()
        if code == errno.EBADF:
            return ClosedError(f"this {self!r} is closed")
        if code == errno.EINVAL:
            return ValueError(f"offset {offset:#x} is not a multiple of the access's {width} bytes")
        if code == errno.EFAULT:
            where = f"{width} bytes at {self.offset + offset:#x} of {self._region!r}"
            return RegionFaultError(
                errno.EIO,
                f"the device did not answer an access to {where}: memory decode is off, it sleeps or is gone",
            )
        return self._out_of_range(offset, width)

    def _out_of_range(self, offset: int, width: int) -> ValueError:
        return ValueError(f"{width} bytes at {offset:#x} are not within the window's {self.length:#x}")

    @property
    def closed(self) -> bool:
        """Whether it has been unmapped."""
        return self._handle is None

    def close(self) -> None:
        """Unmap. Does nothing the second time, nor in a forked child, which never had the mapping."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                window_unmap(handle)
        self._region.device._forget_child(self)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Window {self.offset:#x}..{self.offset + self.length - 1:#x} of {self._region!r}{state}>"
