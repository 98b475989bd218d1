"""Twins of vfio_iommufd_setup_test.c: how a device's file and an iommufd come together."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from pyiommufd import IOMMUFD, DeviceFile, HostDevice, uapi
from pyiommufd.kernel.device.device_info import DeviceFlag
from pyiommufd.uapi import raw
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import refused


@pytest.fixture
def file(host: HostDevice) -> Iterator[DeviceFile]:
    with DeviceFile(host) as file:
        yield file


@twin("vfio_cdev.bind", Route.PUBLIC)
def test_bind(file: DeviceFile, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(file)
    assert device.id
    assert DeviceFlag.PCI in device.info().flags


@twin("vfio_cdev.get_info_without_bind_fails", Route.RAW)
def test_get_info_without_bind(file: DeviceFile) -> None:
    with refused(errno.EINVAL):
        raw.ioctl(file.fileno(), uapi.VFIO_DEVICE_GET_INFO, raw.struct("vfio_device_info"))


@twin("vfio_cdev.bind_bad_iommufd_fails", Route.RAW)
def test_bind_to_no_iommufd(file: DeviceFile) -> None:
    for number, code in ((-2, errno.EINVAL), (file.fileno(), errno.EBADFD), (1 << 20, errno.EBADF)):
        with refused(code):
            raw.ioctl(
                file.fileno(), uapi.VFIO_DEVICE_BIND_IOMMUFD, raw.struct("vfio_device_bind_iommufd", iommufd=number)
            )


@twin("vfio_cdev.repeated_bind_fails", Route.RAW)
def test_second_bind(file: DeviceFile, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(file)
    again = raw.struct("vfio_device_bind_iommufd", iommufd=iommufd.fileno())
    with refused(errno.EINVAL):
        raw.ioctl(device.fileno(), uapi.VFIO_DEVICE_BIND_IOMMUFD, again)
    assert DeviceFlag.PCI in device.info().flags


@twin("vfio_cdev.attach_detatch_pt", Route.PUBLIC)
def test_attach_and_detach(file: DeviceFile, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(file)
    ioas = iommufd.alloc_ioas()
    everywhere = ioas.iova_ranges()
    device.attach(ioas)
    # What the device's IOMMU does not reach, and its interrupts, are no addresses for memory.
    assert ioas.iova_ranges() != everywhere
    device.detach()
    assert ioas.iova_ranges() == everywhere


@twin("vfio_cdev.attach_invalid_pt_fails", Route.RAW)
def test_attach_to_nothing(file: DeviceFile, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(file)
    nothing = raw.struct("vfio_device_attach_iommufd_pt", pt_id=0xFFFF_FFFF)
    with refused(errno.ENOENT):
        raw.ioctl(device.fileno(), uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, nothing)
