"""dma-bufs of memory, from a dma-buf heap of the kernel's."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_ALLOCATE = 0xC0184800
"""DMA_HEAP_IOCTL_ALLOC and its struct: Linux 7.3, include/uapi/linux/dma-heap.h."""


@contextmanager
def heap_dma_buf(length: int) -> Iterator[int]:
    """The fd of a dma-buf of so many bytes of the system heap."""
    heap = os.open("/dev/dma_heap/system", os.O_RDWR)
    try:
        made = fcntl.ioctl(heap, _ALLOCATE, struct.pack("<QIIQ", length, 0, os.O_RDWR | os.O_CLOEXEC, 0))
    finally:
        os.close(heap)
    fd = struct.unpack("<QIIQ", made)[1]
    try:
        yield fd
    finally:
        os.close(fd)
