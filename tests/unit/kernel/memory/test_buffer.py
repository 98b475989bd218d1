"""Memory for DMA, as far as no device has to see it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from pyiommufd import DMABuffer

PAGE = mmap.PAGESIZE


def address(buffer: DMABuffer) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize(("size", "length"), [(1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("memfd", [False, True])
def test_whole_pages(size: int, length: int, memfd: bool) -> None:
    buffer = DMABuffer(size, memfd=memfd)
    assert len(buffer) == length
    assert buffer[:] == bytes(length)
    at = address(buffer)
    gc.collect()
    assert at % PAGE == 0
    buffer.close()


@pytest.mark.parametrize("size", [0, -1, -PAGE, 1 << 63, 1 << 80])
def test_sizes_that_are_none(size: int) -> None:
    with pytest.raises(ValueError, match=r"positive|address space"):
        DMABuffer(size)


@pytest.mark.parametrize("size", [1.5, "4096", None])
def test_what_is_no_size(size: int) -> None:
    with pytest.raises(TypeError, match=rf"^the size of a DMABuffer is an int, not {size!r}$"):
        DMABuffer(size)


@pytest.mark.parametrize("huge", [0, -1, 1, PAGE, 3 << 20, (2 << 20) + 1, 1 << 63])
def test_sizes_that_no_huge_page_has(huge: int) -> None:
    with pytest.raises(ValueError, match="huge pages"):
        DMABuffer(PAGE, huge_page_size=huge)


@pytest.mark.parametrize("memfd", [False, True])
def test_huge_pages_that_are_not_there_are_asked_for_by_name(memfd: bool) -> None:
    """More than any machine has reserved: the error says where to reserve them."""
    fds = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=r"memory|space|large") as caught:
        DMABuffer(1 << 46, huge_page_size=2 << 20, memfd=memfd)
    assert any("hugepages-2048kB/nr_hugepages" in note for note in caught.value.__notes__)
    del caught
    assert len(list(Path("/proc/self/fd").iterdir())) == fds


def test_memory_that_is_not_there() -> None:
    with pytest.raises(OSError, match=r"memory"):
        DMABuffer(1 << 62)


def test_it_is_memory() -> None:
    with DMABuffer(PAGE) as buffer:
        buffer[:5] = b"hello"
        assert bytes(memoryview(buffer)[1:3]) == b"el"
        array = np.frombuffer(buffer, dtype=np.uint8)
        array[0] = 0x48
        assert buffer[:5] == b"Hello"
        with pytest.raises(BufferError):
            buffer.close()
        del array
    assert buffer.closed


def test_forked_child_shares_it() -> None:
    buffer = DMABuffer(PAGE)
    child = os.fork()
    if not child:
        buffer[:5] = b"child"
        os._exit(0)
    os.waitpid(child, 0)
    assert buffer[:5] == b"child"


def test_memfd_is_the_same_memory_and_goes_with_the_buffer() -> None:
    buffer = DMABuffer(PAGE, memfd=True)
    fd = buffer.fileno()
    assert not os.get_inheritable(fd)
    os.pwrite(fd, b"by the file", 0)
    assert buffer[:11] == b"by the file"
    assert os.fstat(fd).st_size == PAGE
    del buffer
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_no_memfd_no_file() -> None:
    with pytest.raises(ValueError, match="memfd=True"):
        DMABuffer(PAGE).fileno()
