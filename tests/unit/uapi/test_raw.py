"""Structs by name, and ioctls with any memory: what is checked before the kernel is asked, and what it says then."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from collections.abc import Iterator

import pytest

from pyiommufd import IoctlError, UnsupportedError, uapi
from pyiommufd.uapi import raw


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_struct_knows_its_size_and_takes_values() -> None:
    command = raw.struct("iommu_ioas_map", ioas_id=3, iova=0x1234_5678_9ABC)
    assert len(command) == command.size == len(command.memory) == 40
    assert bytes(command.memory) == struct.pack("=4I3Q", 40, 0, 3, 0, 0, 0, 0x1234_5678_9ABC)
    command.length = 5
    assert struct.unpack_from("=Q", command.memory, 24) == (5,)
    command.memory[8] = 4
    assert command.ioas_id == 4
    assert "ioas_id=0x4" in repr(command)
    assert "out_data_type=0x7" in repr(raw.struct("iommu_hw_info", in_data_type=7))  # they share a place


def test_the_size_is_the_first_field_alone() -> None:
    command = raw.struct("vfio_iommu_type1_dma_map", size=4096)
    assert (command.argsz, command.size) == (len(command), 4096)
    assert raw.struct("iommu_iova_range").start == 0


def test_a_size_may_be_wrong_and_a_tail_follow() -> None:
    command = raw.struct("iommu_destroy", tail=b"\xff\x01", size=7)
    assert command.size == 7
    assert len(command) == 8
    assert bytes(command.memory[8:]) == b"\xff\x01"
    assert command.end_of("id") == 8
    assert command.end_of("size") == 4


def test_wrong_names_and_values() -> None:
    with pytest.raises(ValueError, match="no struct 'iommu_nothing'"):
        raw.struct("iommu_nothing")
    with pytest.raises(AttributeError, match="iommu_destroy has no field 'name'"):
        raw.struct("iommu_destroy", name=1)
    command = raw.struct("iommu_destroy")
    with pytest.raises(ValueError, match="does not fit"):
        command.id = 1 << 32
    with pytest.raises(TypeError):
        command.id = 1.5  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="has no field 'name'"):
        command.end_of("name")
    with pytest.raises(AttributeError, match="not an integer"):
        raw.struct("vfio_iommu_type1_info_cap_iova_range").header  # noqa: B018


def test_the_address_is_that_of_the_memory() -> None:
    command = raw.struct("iommu_destroy")
    assert raw.address_of(command.memory) == command.address
    with pytest.raises(TypeError):
        raw.address_of("text")


def test_an_ioctl_reaches_the_kernel(pipe: tuple[int, int]) -> None:
    """FIONREAD writes an int: how many bytes there are to read."""
    reader, writer = pipe
    os.write(writer, b"12345")
    memory = bytearray(4)
    assert raw.ioctl(reader, termios.FIONREAD, memory) == 0
    assert memory == fcntl.ioctl(reader, termios.FIONREAD, bytes(4)) == b"\5\0\0\0"
    memory[:] = bytes(4)
    assert raw.ioctl(reader, termios.FIONREAD, raw.address_of(memory)) == 0
    assert memory[0] == 5
    with pytest.raises(IoctlError) as caught:
        raw.ioctl(reader, termios.FIONREAD)
    assert caught.value.errno == errno.EFAULT


def test_a_refusal_names_the_request(pipe: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError, match="IOMMU_DESTROY: ENOTTY"):
        raw.ioctl(pipe[0], uapi.IOMMU_DESTROY, raw.struct("iommu_destroy"))
    # Some numbers are used twice, on files of different kinds.
    with pytest.raises(UnsupportedError, match="VFIO_DEVICE_GET_PCI_HOT_RESET_INFO or VFIO_IOMMU_GET_INFO"):
        raw.ioctl(pipe[0], uapi.VFIO_IOMMU_GET_INFO)
    with pytest.raises(UnsupportedError, match="ioctl 0x3b7f"):
        raw.ioctl(pipe[0], uapi.IOMMU_DESTROY - 1)
    with pytest.raises(IoctlError, match="EBADF"):
        raw.ioctl(-1, uapi.IOMMU_DESTROY)


def test_wrong_arguments(pipe: tuple[int, int]) -> None:
    for argument in (-1, 1 << 64):
        with pytest.raises(ValueError, match="does not fit"):
            raw.ioctl(pipe[0], uapi.IOMMU_DESTROY, argument)
    with pytest.raises(ValueError, match="fd"):
        raw.ioctl(1 << 40, uapi.IOMMU_DESTROY)
    with pytest.raises(BufferError):
        raw.ioctl(pipe[0], uapi.IOMMU_DESTROY, b"read-only")
    with pytest.raises(TypeError):
        raw.ioctl(pipe[0], uapi.IOMMU_DESTROY, None)
    with pytest.raises(TypeError):
        raw.ioctl(pipe[0], "IOMMU_DESTROY")  # type: ignore[arg-type]
