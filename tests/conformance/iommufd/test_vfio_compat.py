"""Twins of the fixture ``vfio_compat_mock_domain``: the container interface of VFIO over an address space."""

from __future__ import annotations

import errno
import random
import struct
from dataclasses import dataclass

import pytest

from pyiommufd import IOAS, DMABuffer, NotFoundError, uapi
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from pyiommufd.uapi import raw
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import HUGE, PAGE, issue, refused

IOVA = commands.APERTURE_START
READ_WRITE = uapi.VFIO_DMA_MAP_FLAG_READ | uapi.VFIO_DMA_MAP_FLAG_WRITE
FLAGS = uapi.VFIO_IOMMU_INFO_PGSIZES | uapi.VFIO_IOMMU_INFO_CAPS


@dataclass(frozen=True)
class Container:
    """An iommufd that has been told to be a container of VFIO.

    Attributes:
        iommufd: The iommufd.
        ioas: The address space that it maps into.
        device: The mock device that is attached there.
        version: VFIO_TYPE1_IOMMU or VFIO_TYPE1v2_IOMMU.
    """

    iommufd: MockIOMMUFD
    ioas: IOAS
    device: MockDevice
    version: int

    def map(self, memory: memoryview, iova: int) -> None:
        """VFIO_IOMMU_MAP_DMA."""
        fields = {"vaddr": raw.address_of(memory), "size": len(memory), "iova": iova, "flags": READ_WRITE}
        issue(self.iommufd, uapi.VFIO_IOMMU_MAP_DMA, "vfio_iommu_type1_dma_map", **fields)

    def unmap(self, iova: int, size: int, flags: int = 0) -> int:
        """VFIO_IOMMU_UNMAP_DMA; how many bytes it has unmapped."""
        fields = {"iova": iova, "size": size, "flags": flags}
        return issue(self.iommufd, uapi.VFIO_IOMMU_UNMAP_DMA, "vfio_iommu_type1_dma_unmap", **fields).size


VERSIONS = {"Ver1v2": uapi.VFIO_TYPE1v2_IOMMU, "Ver1v0": uapi.VFIO_TYPE1_IOMMU}


@pytest.fixture(params=list(VERSIONS.values()), ids=list(VERSIONS))
def container(request: pytest.FixtureRequest, iommufd: MockIOMMUFD) -> Container:
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    device = iommufd.mock_device(ioas)
    iommufd.vfio_ioas = ioas
    raw.ioctl(iommufd.fileno(), uapi.VFIO_SET_IOMMU, request.param)
    return Container(iommufd, ioas, device, request.param)


@twin("vfio_compat_mock_domain.simple_close", Route.RAW)
def test_simple_close(container: Container) -> None:
    """Empty in C, too: it is the set-up that counts."""


@twin("vfio_compat_mock_domain.option_huge_pages", Route.RAW)
def test_option_huge_pages(container: Container) -> None:
    # The older version may cut mappings in two, and so does without huge pages.
    value = container.ioas.huge_pages
    assert value is (container.version == uapi.VFIO_TYPE1v2_IOMMU)
    if not value:
        container.ioas.huge_pages = True
    assert container.ioas.huge_pages is True


# VFIO_IOMMU_GET_INFO


def get_info(container: Container, size: int, room: int = 1 << 16) -> tuple[bytearray, int, int, int, int]:
    """VFIO_IOMMU_GET_INFO with that much room, behind which nothing may be written: the memory, and the fields."""
    memory = bytearray(struct.pack("=II", size, 0) + bytes(size)) if size >= 8 else bytearray(8)
    memory = memory[:size] + b"\xaa" * (room - size)
    raw.ioctl(container.iommufd.fileno(), uapi.VFIO_IOMMU_GET_INFO, memory)
    assert memory[size:] == b"\xaa" * (room - size)
    argsz, flags, page_sizes, capabilities = struct.unpack_from("=IIQI", memory)
    if size < 20:
        capabilities = 0
    return memory, argsz, flags, page_sizes, capabilities


def check_capabilities(memory: bytearray, argsz: int, offset: int) -> set[int]:
    """The capabilities are a list, each within the struct and behind the last. Returns which there are."""
    seen: set[int] = set()
    while offset:
        assert argsz >= offset + 8
        kind, version, following = struct.unpack_from("=HHI", memory, offset)
        size = (following or argsz) - offset
        assert version == 1
        if kind == uapi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            assert struct.unpack_from("=IIQQ", memory, offset + 8) == (1, 0, IOVA, commands.APERTURE_LAST)
        else:
            assert kind == uapi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
            # 12 bytes, up to the next multiple of 8, where the kernel puts what follows.
            assert size == 16
        seen.add(kind)
        assert not following or following > offset
        offset = following
    return seen


@twin("vfio_compat_mock_domain.get_info", Route.RAW)
def test_get_info(container: Container) -> None:
    # Before there were capabilities, and with no room for any.
    whole = len(raw.struct("vfio_iommu_type1_info"))
    needed = 0
    for size in (16, whole):
        _, needed, flags, page_sizes, capabilities = get_info(container, size)
        assert page_sizes
        assert flags == FLAGS
        assert capabilities == 0
    assert needed > whole

    seen: set[int] = set()
    for size in range(whole, needed + 1):
        memory, argsz, flags, _, capabilities = get_info(container, size)
        assert flags == FLAGS
        if capabilities:
            seen |= check_capabilities(memory, argsz, capabilities)
    assert seen == {uapi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, uapi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL}


# Map and unmap


@twin("vfio_compat_mock_domain.map", Route.RAW)
def test_map(container: Container, buffer: memoryview) -> None:
    size = len(buffer)
    container.map(buffer, IOVA)
    assert container.device.reaches(buffer, IOVA)
    assert container.unmap(IOVA, size) == size
    # To unmap what is empty is no mistake here.
    container.unmap(IOVA, size)

    container.map(buffer, IOVA)
    with refused(errno.EINVAL):
        container.unmap(IOVA, size, uapi.VFIO_DMA_UNMAP_FLAG_ALL)
    assert container.unmap(0, 0, uapi.VFIO_DMA_UNMAP_FLAG_ALL) == size

    offsets = list(range(0, size, PAGE))
    for offset in offsets:
        container.map(buffer[offset : offset + PAGE], IOVA + offset)
    assert container.device.reaches(buffer, IOVA)
    random.Random(0).shuffle(offsets)  # noqa: S311 - to be repeatable
    for offset in offsets:
        assert container.unmap(IOVA + offset, PAGE) == PAGE
        assert not container.device.reaches(buffer[offset : offset + PAGE], IOVA + offset)


@twin("vfio_compat_mock_domain.huge_map", Route.RAW)
def test_huge_map(container: Container, huge_pages: None) -> None:
    huge = memoryview(DMABuffer(2 * HUGE, huge_page_size=HUGE))
    huge[::PAGE] = bytes(len(huge) // PAGE)
    container.map(huge, IOVA)
    assert container.device.reaches(huge, IOVA)
    piece = len(huge) // 16
    offsets = list(range(0, len(huge), piece))
    random.Random(0).shuffle(offsets)  # noqa: S311 - to be repeatable
    for offset in offsets:
        part = huge[offset : offset + piece]
        # The older version cuts, the newer one never does.
        if container.version == uapi.VFIO_TYPE1_IOMMU:
            assert container.unmap(IOVA + offset, piece) == piece
            assert not container.device.reaches(part, IOVA + offset)
        else:
            with pytest.raises(NotFoundError):
                container.unmap(IOVA + offset, piece)
            assert container.device.reaches(part, IOVA + offset)
