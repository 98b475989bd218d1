"""The data of a device that is saved or loaded."""

from __future__ import annotations

import errno
import io

from pyiommufd import diagnose
from pyiommufd.errors import IoctlError
from pyiommufd.kernel.handle import Handle
from pyiommufd.uapi import ioctls

CHUNK = 1 << 20
"""Bytes that are copied at a time."""


class MigrationStream(Handle):
    """The data of a device that is saved or loaded: the kernel's data fd. Made by `Migration.stream`.

    It is closed when the device leaves the states that it belongs to. The data are opaque and have their own end:
    whoever passes them on keeps their order, and may cut them as he likes.

    Thread safety: everything here may be used from any thread; each byte is read by one.

    Attributes:
        writable: Whether the device takes the data in; else they are read from it.
    """

    __slots__ = ("_name", "writable")

    writable: bool

    def __init__(self, name: str, *, writable: bool) -> None:
        self._name = name
        self.writable = writable
        super().__init__()

    def _what(self) -> str:
        return f"stream of {self._name}"

    def _open(self, *, writable: bool) -> ioctls.File:
        file = self._live()
        if writable != self.writable:
            raise io.UnsupportedOperation(f"{self._what()}: the device {'takes in' if self.writable else 'gives'} data")
        return file

    def read(self, size: int = -1, /) -> bytes:
        """Read from the device; other threads run meanwhile.

        Args:
            size: Bytes at most; negative: all that there are.

        Returns:
            The bytes. That there are none is the end in STOP_COPY; in a PRE_COPY state there may be more later.

        Raises:
            MigrationError: The device refused.
            io.UnsupportedOperation: The device takes data in.
            ClosedError, ForkedError: It has been closed, or belongs to the parent process.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        while True:
            file = self._open(writable=False)
            try:
                return ioctls.file_read(file, size)
            except IoctlError as error:
                if error.errno == errno.ENOMSG:
                    return b""
                self._refused(error)

    def write(self, data: bytes, /) -> int:
        """Have the device take in data, all of them; other threads run meanwhile.

        Returns:
            How many bytes these were.

        Raises:
            MigrationError: The device refused, such as for data of a device of another kind.
            io.UnsupportedOperation: The device gives data.
            TypeError, ClosedError, ForkedError: They are no bytes; else as for `read`.
        """
        left = memoryview(data).cast("B")
        while left:
            file = self._open(writable=True)
            try:
                left = left[ioctls.file_write(file, left) :]
            except IoctlError as error:
                self._refused(error)
        return memoryview(data).nbytes

    def _refused(self, error: IoctlError) -> None:
        """Raise, but for a call that a signal has interrupted, and whose handler has not."""
        self._live()  # raises where it was closed meanwhile
        if error.errno != errno.EINTR:
            raise diagnose.data_error(error.request, error.errno or 0, self._name) from None

    def close(self) -> None:
        """Close the data fd; the device stays in its state. Does nothing the second time."""
        super().close()
