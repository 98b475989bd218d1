"""Copies: memory of one address space in another."""

from __future__ import annotations

import mmap

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AlreadyMappedError,
    ClosedError,
    Device,
    DMABuffer,
    NotFoundError,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives

PAGE = mmap.PAGESIZE


def test_copy_is_the_same_memory(
    device: Device, edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    source = iommufd.alloc_ioas()
    original = source.map(buffer, iova=16 * IOVA)
    device.attach(ioas)
    copy = ioas.copy_from(source, original.iova, original.length, dst_iova=IOVA)
    assert (copy.iova, copy.length) == (IOVA, original.length)
    assert arrives(edu, buffer)
    # It holds the memory by itself.
    original.unmap()
    with pytest.raises(BufferError):
        buffer.close()
    assert arrives(edu, buffer)
    copy.unmap()
    assert not arrives(edu, buffer)
    buffer.close()


def test_copy_that_is_refused(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    source = iommufd.alloc_ioas()
    source.map(buffer, iova=IOVA, writeable=False)
    with pytest.raises(OSError, match="EPERM"):
        source.copy_from(source, IOVA, PAGE)
    for length, seen in ((5 * PAGE, f"{IOVA:#x}..{IOVA + 4 * PAGE - 1:#x}"), (PAGE, "nothing of it")):
        with pytest.raises(NotFoundError) as caught:
            ioas.copy_from(source, IOVA if length > PAGE else 3 * IOVA, length, writeable=False)
        (cause,) = caught.value.causes
        assert "not all of the source range is mapped" in cause.summary
        assert seen in cause.evidence
    ioas.map(DMABuffer(PAGE), iova=IOVA)
    with pytest.raises(AlreadyMappedError):
        ioas.copy_from(source, IOVA, PAGE, dst_iova=IOVA, writeable=False)
    with IOMMUFD() as other, pytest.raises(ValueError, match="another IOMMUFD"):
        ioas.copy_from(other.alloc_ioas(), IOVA, PAGE)
    source.close()
    with pytest.raises(ClosedError):
        ioas.copy_from(source, IOVA, PAGE)
    buffer.close()
    assert ioas.unmap_all() == PAGE
