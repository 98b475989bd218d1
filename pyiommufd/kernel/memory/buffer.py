"""Memory for DMA."""

from __future__ import annotations

import mmap
import os
from typing import Any, Self

from pyiommufd.errors import ioctl_error
from pyiommufd.kernel.memory.arguments import whole
from pyiommufd.uapi import ioctls

# Not named by CPython's mmap; asm-generic/mman-common.h and hugetlb_encode.h (x86 and arm64 alike).
_MAP_HUGETLB = 0x40000
_HUGE_SHIFT = 26


class DMABuffer(mmap.mmap):
    """Page-aligned memory that can be mapped into an I/O address space.

    It is an `mmap.mmap`: it has the buffer protocol, slices, ``read``, ``write``, ``close``, and is a context manager.
    As long as it is mapped for DMA it can be neither closed nor resized (`BufferError`). A forked child shares
    it: a private copy would leave one of the two on other pages than the device.

    Thread safety: that of `bytearray`; what a device writes meanwhile is seen when it has written it.

    Args:
        size: Bytes; rounded up to whole pages, or whole huge pages.
        huge_page_size: Back it with huge pages of that size in bytes, such as ``2 << 20``. They must have been
            reserved under ``/sys/kernel/mm/hugepages``.
        memfd: Back it with a memfd: for `IOAS.map_file`, and to share with processes that are not children.

    Raises:
        ValueError: A size that is not positive or does not fit, or an invalid huge page size.
        TypeError: A size that is no int.
        IoctlError: There is no memory, or not enough huge pages of that size are free; or the machine has none.
    """

    _memfd: ioctls.File

    def __new__(cls, size: int, *, huge_page_size: int | None = None, memfd: bool = False) -> Self:
        """Make the buffer; see the class."""
        size = whole(size, "the size of a DMABuffer")
        if size <= 0:
            raise ValueError(f"the size of a DMABuffer is a positive number of bytes, not {size}")
        unit, encoded = mmap.PAGESIZE, 0
        if huge_page_size is not None:
            unit = whole(huge_page_size, "huge_page_size")
            if unit <= mmap.PAGESIZE or unit & (unit - 1) or unit.bit_length() > 63:
                raise ValueError(f"{unit} bytes is not a size of huge pages; they have 2 << 20 or 1 << 30 bytes, say")
            encoded = (unit.bit_length() - 1) << _HUGE_SHIFT
        length = -(-size // unit) * unit
        if length.bit_length() > 63:
            raise ValueError(f"{size} bytes are more than an address space holds")
        file, call = ioctls.new_file(), "mmap"
        try:
            if memfd:
                huge = 0 if huge_page_size is None else os.MFD_HUGETLB | encoded
                call = "memfd_create"
                ioctls.file_memfd(file, os.MFD_CLOEXEC | huge, length)
                call = "mmap"
                self = super().__new__(cls, file.fd, length)
            else:
                huge = 0 if huge_page_size is None else _MAP_HUGETLB | encoded
                # Python takes a signed int; from pages of 4 GiB on the size reaches its highest bit.
                flags: Any = (mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | huge) - (huge >> 31 << 32)
                self = super().__new__(cls, -1, length, flags=flags)
        except OSError as failure:
            ioctls.file_close(file)
            error = ioctl_error(call, failure.errno or 0, f"a DMABuffer of {length:#x} bytes")
            if huge_page_size is not None:
                pool = f"/sys/kernel/mm/hugepages/hugepages-{unit >> 10}kB/nr_hugepages"
                error.add_note(f"it takes {length // unit} free huge pages of {unit} bytes: reserve them in {pool}")
            raise error from None
        self._memfd = file  # which closes its fd when it is freed
        return self

    def fileno(self) -> int:
        """The memfd's file descriptor; it is closed when the buffer is freed.

        Raises:
            ValueError: The buffer was made without ``memfd=True``.
        """
        if self._memfd.fd < 0:
            raise ValueError("this DMABuffer has no file: make it with memfd=True")
        return self._memfd.fd

    def __repr__(self) -> str:
        if self.closed:
            return "<DMABuffer closed>"
        return f"<DMABuffer {len(self):#x} bytes{'' if self._memfd.fd < 0 else f', memfd {self._memfd.fd}'}>"
