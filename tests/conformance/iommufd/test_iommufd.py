"""Twins of the fixture ``iommufd``: commands as such, options of the whole, container ioctls without a device."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import NotFoundError, UnsupportedError, uapi
from pyiommufd.testing.mock import MockIOMMUFD, commands
from pyiommufd.uapi import raw
from tests.by_id import destroy
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import PAGE, issue, refused

# The struct of each command, and the last field without which the kernel does not take it.
COMMANDS = (
    ("IOMMU_DESTROY", "iommu_destroy", "id"),
    ("IOMMU_GET_HW_INFO", "iommu_hw_info", "__reserved"),
    ("IOMMU_HWPT_ALLOC", "iommu_hwpt_alloc", "__reserved"),
    ("IOMMU_HWPT_INVALIDATE", "iommu_hwpt_invalidate", "__reserved"),
    ("IOMMU_IOAS_ALLOC", "iommu_ioas_alloc", "out_ioas_id"),
    ("IOMMU_IOAS_IOVA_RANGES", "iommu_ioas_iova_ranges", "out_iova_alignment"),
    ("IOMMU_IOAS_ALLOW_IOVAS", "iommu_ioas_allow_iovas", "allowed_iovas"),
    ("IOMMU_IOAS_MAP", "iommu_ioas_map", "iova"),
    ("IOMMU_IOAS_COPY", "iommu_ioas_copy", "src_iova"),
    ("IOMMU_IOAS_UNMAP", "iommu_ioas_unmap", "length"),
    ("IOMMU_OPTION", "iommu_option", "val64"),
    ("IOMMU_VFIO_IOAS", "iommu_vfio_ioas", "__reserved"),
    ("IOMMU_IOAS_MAP_FILE", "iommu_ioas_map_file", "iova"),
    ("IOMMU_VIOMMU_ALLOC", "iommu_viommu_alloc", "out_viommu_id"),
    ("IOMMU_VDEVICE_ALLOC", "iommu_vdevice_alloc", "virt_id"),
    ("IOMMU_IOAS_CHANGE_PROCESS", "iommu_ioas_change_process", "__reserved"),
)


def outcome(iommufd: MockIOMMUFD, request: int, command: raw.Struct) -> int:
    """The errno that a command fails with, 0 where it succeeds."""
    try:
        raw.ioctl(iommufd.fileno(), request, command)
    except OSError as error:
        return error.errno or 0
    return 0


@twin("iommufd.simple_close", Route.PUBLIC)
def test_simple_close(iommufd: MockIOMMUFD) -> None:
    """Empty in C, too: opening and closing is all."""


@twin("iommufd.cmd_fail", Route.RAW)
def test_cmd_fail(iommufd: MockIOMMUFD) -> None:
    with pytest.raises(NotFoundError):
        destroy(iommufd, 0)
    with refused(errno.EFAULT):
        raw.ioctl(iommufd.fileno(), uapi.IOMMU_DESTROY, 0)
    with pytest.raises(UnsupportedError) as caught:
        raw.ioctl(iommufd.fileno(), uapi.IOMMU_DESTROY - 1, raw.struct("iommu_destroy"))
    assert caught.value.errno == errno.ENOTTY


@twin("iommufd.cmd_length", Route.RAW)
def test_cmd_length(iommufd: MockIOMMUFD) -> None:
    for name, struct, last in COMMANDS:
        request: int = getattr(uapi, name)
        command = raw.struct(struct, tail=b"\xff")
        command.size = command.end_of(last) - 1
        assert outcome(iommufd, request, command) == errno.EINVAL, name
        command.size = len(command) + 1
        assert outcome(iommufd, request, command) == errno.E2BIG, name
        command.size = len(command)
        plain = outcome(iommufd, request, command)
        command.size = len(command) + 1
        command.memory[-1] = 0
        assert outcome(iommufd, request, command) == plain, name


@twin("iommufd.cmd_ex_fail", Route.RAW)
def test_cmd_ex_fail(iommufd: MockIOMMUFD) -> None:
    command = raw.struct("iommu_destroy", tail=bytes(8))
    command.size = len(command.memory)
    assert outcome(iommufd, uapi.IOMMU_DESTROY, command) == errno.ENOENT
    command.memory[len(command)] = 1
    assert outcome(iommufd, uapi.IOMMU_DESTROY, command) == errno.E2BIG
    command.size = len(command)
    assert outcome(iommufd, uapi.IOMMU_DESTROY, command) == errno.ENOENT
    command.size = len(command) - 1
    assert outcome(iommufd, uapi.IOMMU_DESTROY, command) == errno.EINVAL


@twin("iommufd.global_options", Route.RAW)
def test_global_options(iommufd: MockIOMMUFD) -> None:
    assert iommufd.rlimit_mode is False
    iommufd.rlimit_mode = True
    with refused(errno.EINVAL):
        issue(
            iommufd,
            uapi.IOMMU_OPTION,
            "iommu_option",
            option_id=uapi.IOMMU_OPTION_RLIMIT_MODE,
            op=uapi.IOMMU_OPTION_OP_SET,
            val64=2,
        )
    assert iommufd.rlimit_mode is True
    iommufd.rlimit_mode = False
    assert iommufd.rlimit_mode is False
    # Huge pages are an option of an address space, and 0 is none.
    for operation in (uapi.IOMMU_OPTION_OP_GET, uapi.IOMMU_OPTION_OP_SET):
        with pytest.raises(NotFoundError):
            issue(iommufd, uapi.IOMMU_OPTION, "iommu_option", option_id=uapi.IOMMU_OPTION_HUGE_PAGES, op=operation)


# VFIO's container interface, without an address space set


@twin("iommufd.simple_ioctls", Route.RAW)
def test_simple_ioctls(iommufd: MockIOMMUFD) -> None:
    assert raw.ioctl(iommufd.fileno(), uapi.VFIO_GET_API_VERSION) == uapi.VFIO_API_VERSION
    assert raw.ioctl(iommufd.fileno(), uapi.VFIO_CHECK_EXTENSION, uapi.VFIO_TYPE1v2_IOMMU) == 1


@twin("iommufd.unmap_cmd", Route.RAW)
def test_unmap_cmd(iommufd: MockIOMMUFD) -> None:
    command = raw.struct("vfio_iommu_type1_dma_unmap", iova=commands.APERTURE_START, size=PAGE)
    command.argsz = 1
    assert outcome(iommufd, uapi.VFIO_IOMMU_UNMAP_DMA, command) == errno.EINVAL
    command.argsz = len(command)
    command.flags = 1 << 31
    assert outcome(iommufd, uapi.VFIO_IOMMU_UNMAP_DMA, command) == errno.EINVAL
    command.flags = 0
    assert outcome(iommufd, uapi.VFIO_IOMMU_UNMAP_DMA, command) == errno.ENODEV


@twin("iommufd.map_cmd", Route.RAW)
def test_map_cmd(iommufd: MockIOMMUFD, buffer: memoryview) -> None:
    command = raw.struct(
        "vfio_iommu_type1_dma_map", iova=commands.APERTURE_START, size=PAGE, vaddr=raw.address_of(buffer)
    )
    command.argsz = 1
    assert outcome(iommufd, uapi.VFIO_IOMMU_MAP_DMA, command) == errno.EINVAL
    command.argsz = len(command)
    command.flags = 1 << 31
    assert outcome(iommufd, uapi.VFIO_IOMMU_MAP_DMA, command) == errno.EINVAL
    command.flags = uapi.VFIO_DMA_MAP_FLAG_READ | uapi.VFIO_DMA_MAP_FLAG_WRITE
    assert outcome(iommufd, uapi.VFIO_IOMMU_MAP_DMA, command) == errno.ENODEV


@twin("iommufd.info_cmd", Route.RAW)
def test_info_cmd(iommufd: MockIOMMUFD) -> None:
    command = raw.struct("vfio_iommu_type1_info", argsz=1)
    assert outcome(iommufd, uapi.VFIO_IOMMU_GET_INFO, command) == errno.EINVAL
    command.argsz = len(command)
    assert outcome(iommufd, uapi.VFIO_IOMMU_GET_INFO, command) == errno.ENODEV


@twin("iommufd.set_iommu_cmd", Route.RAW)
def test_set_iommu_cmd(iommufd: MockIOMMUFD) -> None:
    for kind in (uapi.VFIO_TYPE1v2_IOMMU, uapi.VFIO_TYPE1_IOMMU):
        with refused(errno.ENODEV):
            raw.ioctl(iommufd.fileno(), uapi.VFIO_SET_IOMMU, kind)


@twin("iommufd.vfio_ioas", Route.RAW)
def test_vfio_ioas(iommufd: MockIOMMUFD) -> None:
    def check_none() -> None:
        assert iommufd.vfio_ioas is None
        with refused(errno.ENODEV):
            issue(iommufd, uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", op=uapi.IOMMU_VFIO_IOAS_GET)

    check_none()
    with pytest.raises(NotFoundError):
        issue(iommufd, uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", op=uapi.IOMMU_VFIO_IOAS_SET, ioas_id=0)
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    iommufd.vfio_ioas = ioas
    answer = issue(iommufd, uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", op=uapi.IOMMU_VFIO_IOAS_GET)
    assert answer.ioas_id == ioas.id
    assert iommufd.vfio_ioas is ioas
    iommufd.vfio_ioas = None
    check_none()
