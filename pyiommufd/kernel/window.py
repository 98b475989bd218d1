"""A mapped part of a device region or of another file of registers, for register access."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from typing import NoReturn, Protocol, Self

from pyiommufd.closing import Closing
from pyiommufd.errors import ClosedError, IoctlError, RegionFaultError, ioctl_error
from pyiommufd.kernel.handle import Handle, forked_error
from pyiommufd.kernel.memory.arguments import whole
from pyiommufd.uapi.device_ioctls import (
    WindowHandle,
    window_copy_in,
    window_copy_out,
    window_forget,
    window_map,
    window_mapped,
    window_new,
    window_unmap,
)
from pyiommufd.uapi.fast import Registers
from pyiommufd.uapi.ioctls import CHAR_ARRAY, Cell, View, address, from_buffer, new_cell, release


class Mappable(Protocol):
    """The protocol of what windows are on: part of a file that can be mapped. `Region` has it."""

    @property
    def file_offset(self) -> int:
        """Where in the file it begins, in bytes."""

    @property
    def _file_owner(self) -> Handle:
        """The owner of the file's fd."""

    def _why_silent(self) -> str:
        """Why an access was not answered, and the way out."""


class Window(Registers, Closing):
    """A mapped part of a region. Made by `Region.map`, or of a vIOMMU's registers by `VIOMMU.map`.

    Each `read32` and the like is one bus access of exactly the width named. Offsets are in bytes from the window's
    start and multiples of the width. Values are in the CPU's byte order, which is a PCI device's on x86 and arm64.
    `read`, `readinto` and `write` copy many bytes by one call; do not use them where the device depends on the access
    width.

    An access that the device does not answer (memory decode off, asleep, in reset, gone) raises
    `RegionFaultError`, which names which of these it is as far as that is seen; the SIGBUS behind it reaches no other
    handler. That is so whatever SIGBUS handlers others set, faulthandler's among them: each access checks by a system
    call which one is set, and sets its own if that is another. Any other SIGBUS is passed on. A thread that blocks
    SIGBUS must not access a window: the kernel ends a process for a fault that its thread blocks.

    A window that is dropped is unmapped, as an `mmap.mmap` is.

    Thread safety: accesses may be made from any thread. `close` waits for those under way, and later ones raise.

    Attributes:
        offset: Where in the region it begins, in bytes.
        length: Bytes.
    """

    __slots__ = ("__weakref__", "_region", "length", "offset")

    def __new__(cls, region: Mappable, offset: int, length: int) -> Self:  # noqa: ARG004 - of __init__
        """Make one that nothing is mapped in yet; see the class."""
        handle = window_new()
        return super().__new__(cls, address(handle), handle)

    def __init__(self, region: Mappable, offset: int, length: int) -> None:
        self._region = region
        self.offset = offset
        self.length = length

    def _map(self, *, readable: bool, writeable: bool) -> None:
        start = self._region.file_offset + self.offset
        file = self._region._file_owner._live()
        try:
            window_map(self._handle, file, start, self.length, readable=readable, writeable=writeable)
        except IoctlError as error:
            if error.errno == errno.ECANCELED:  # a signal handler has closed the device
                raise self._closed_error() from None
            raise

    # Bulk copies

    def read(self, offset: int, length: int) -> bytes:
        """Read many bytes. Without the GIL, and not interruptible by signals.

        By accesses of 8 bytes where the offset is a multiple of 8; before the first of them and after the last one by
        accesses of 4, 2 and 1 bytes. Each byte is read once, in ascending order.

        Args:
            offset: Bytes from the start of the window; any.
            length: Bytes.

        Raises:
            ValueError: The range is not within the window.
            TypeError: The numbers are no ints.
            RegionFaultError: The device does not answer, from the access at byte ``done`` on.
            AccessDeniedError, ClosedError, ForkedError: As for `read64`.
        """
        offset, length = whole(offset, "offset"), whole(length, "length")
        if offset < 0 or not 0 <= length <= self.length - offset:
            raise self._out_of_range(offset, length)
        data = bytearray(length)
        self.readinto(offset, data)
        return bytes(data)

    def readinto(self, offset: int, buffer: bytearray | memoryview | mmap.mmap) -> int:
        """Fill a buffer with what `read` would return, such as a `DMABuffer`.

        Args:
            offset: Bytes from the start of the window; any.
            buffer: Contiguous memory that can be written to; all of it is filled. In the case of a fault it is filled
                up to there.

        Returns:
            Its length in bytes.

        Raises:
            ValueError, TypeError: As for `read`, or the buffer is not such memory.
            RegionFaultError, AccessDeniedError, ClosedError, ForkedError: As for `read`.
        """
        view = memoryview(buffer)
        if view.readonly:
            raise TypeError("this memory is read-only")
        return self._copy(window_copy_out, offset, view)

    def write(self, offset: int, data: bytes | bytearray | memoryview | mmap.mmap) -> None:
        """Write many bytes, by accesses as those of `read`.

        Args:
            offset: Bytes from the start of the window; any.
            data: What to write there.

        Raises:
            ValueError: The range is not within the window.
            TypeError: The offset is no int, or the data no contiguous memory.
            RegionFaultError: The device does not answer, from the access at byte ``done`` on. As writes do not wait
                for the device, some before it may have been lost, too.
            AccessDeniedError, ClosedError, ForkedError: As for `write64`.
        """
        self._copy(window_copy_in, offset, memoryview(data))

    def _copy(
        self, copy: Callable[[WindowHandle, int, View, int, Cell], int], offset: int, memory: memoryview[int]
    ) -> int:
        with memory, memory.cast("B") as plain:  # released at once, also where a traceback has them
            offset = whole(offset, "offset")
            held = from_buffer(CHAR_ARRAY, plain, False)
            try:
                length, done = len(held), new_cell("uint64_t")
                try:
                    failed = copy(self._handle, offset, held, length, done)
                except OverflowError:
                    raise self._out_of_range(offset, length) from None
                if failed:
                    raise self._failure(-failed, offset, length, done[0])
                return length
            finally:
                release(held)

    # Close

    @property
    def closed(self) -> bool:
        """Whether it has been unmapped."""
        return not window_mapped(self._handle)

    def close(self) -> None:
        """Unmap. Does nothing the second time, nor in a forked child, which never had the mapping.

        Where another thread is closing it, this waits until it is unmapped.
        """
        window_unmap(self._handle)

    # Internal

    def _mark_forked(self) -> None:
        """This process is a forked child, which does not have the mapping."""
        window_forget(self._handle)

    # Accesses by what is no plain int, or does not fit one: called by those of `Registers`.

    def _read_at(self, offset: int, bits: int) -> int:
        at = self._fitting(offset, bits // 8)
        return int(getattr(self, f"read{bits}")(at))

    def _write_at(self, offset: int, value: int, bits: int) -> None:
        at, number = self._fitting(offset, bits // 8), whole(value, "value")
        if not 0 <= number < 1 << bits:
            raise ValueError(f"{number:#x} does not fit {bits // 8} bytes")
        getattr(self, f"write{bits}")(at, number)

    def _fitting(self, offset: int, width: int) -> int:
        """An offset as a plain int, which fits 63 bits without a sign."""
        at = whole(offset, "offset")
        if not 0 <= at < 1 << 63:
            raise self._out_of_range(at, width)
        return int(at)

    def _refused(self, code: int, offset: int, width: int) -> NoReturn:
        raise self._failure(code, offset, width)

    def _failure(self, code: int, offset: int, length: int, done: int = 0) -> Exception:
        if code == errno.EBADF:
            return self._closed_error()
        if code == errno.EACCES:
            return ioctl_error("access", code, f"{self!r}, whose region is read-only or write-only")
        if code == errno.EINVAL:
            return ValueError(f"offset {offset:#x} is not a multiple of the access's {length} bytes")
        if code == errno.EFAULT:
            where = f"{length - done} bytes at {self.offset + offset + done:#x} of {self._region!r}"
            after = f", after {done} bytes" if done else ""
            text = f"the device did not answer an access to {where}{after}: {self._region._why_silent()}"
            fault = RegionFaultError(errno.EIO, text)
            fault.done = done
            return fault
        return self._out_of_range(offset, length)

    def _closed_error(self) -> ClosedError:
        owner = self._region._file_owner
        if owner.in_child:
            return forked_error(f"this {self!r}", owner.pid)
        return ClosedError(f"this {self!r} is closed")

    def _out_of_range(self, offset: int, length: int) -> ValueError:
        if self.closed:
            return self._closed_error()
        return ValueError(f"{length} bytes at {offset:#x} are not within the window's {self.length:#x}")

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Window {self.offset:#x}..{self.offset + self.length - 1:#x} of {self._region!r}{state}>"
