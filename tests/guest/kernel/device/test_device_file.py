"""Device files: open, not bound."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyiommufd import (
    IOMMUFD,
    Claim,
    ClaimError,
    ClosedError,
    DeviceFile,
    DeviceNotFoundError,
    HostDevice,
    NotFoundError,
    plan_claim,
)
from pyiommufd.host.holders import holders
from pyiommufd.uapi import device_ioctls


def test_open_keeps_the_device_and_close_lets_it_go(claimed: Claim, first: HostDevice) -> None:
    now = first.refreshed()
    with DeviceFile(first) as file:
        assert file.name == first.name
        assert file.device == first
        assert [holder.how for holder in holders(now)] == [f"fd {file.fileno()}"]
        assert str(Path(f"/proc/self/fd/{file.fileno()}").readlink()) == now.vfio_cdev
        assert not os.get_inheritable(file.fileno())
    assert file.closed
    assert holders(now) == ()
    file.close()
    with pytest.raises(ClosedError, match=f"^this DeviceFile {first.name} is closed$"):
        file.fileno()


def test_kernel_answers_nothing_before_the_bind(claimed: Claim, first: HostDevice) -> None:
    with DeviceFile(first) as file, pytest.raises(OSError, match="EINVAL"):
        device_ioctls.device_info(file.fileno())


def test_every_name_of_a_device(claimed: Claim, first: HostDevice) -> None:
    node = first.refreshed().vfio_cdev
    assert node is not None
    for target in (first, first.name, first.name.removeprefix("0000:"), node, Path(node), str(first.sys_path)):
        with DeviceFile(target) as file:
            assert file.name == first.name


def test_device_without_a_vfio_driver(claimed: Claim, bridge: HostDevice) -> None:
    with pytest.raises(NotFoundError, match="not on a vfio driver") as caught:
        DeviceFile(bridge)
    assert caught.value.errno == errno.ENOENT
    # What cannot be claimed is not to be claimed first.
    with pytest.raises(ClaimError) as refused:
        plan_claim(bridge)
    assert [cause.fix for cause in caught.value.causes] == [str(refused.value)]


def test_device_to_be_claimed_first(alone: HostDevice) -> None:
    if alone.refreshed().on_vfio:
        pytest.skip("a test before has claimed it")
    with pytest.raises(NotFoundError) as caught:
        DeviceFile(alone)
    assert [cause.fix for cause in caught.value.causes] == [f"claim it first: plan_claim([{alone.name!r}]).apply()"]


def test_no_device(claimed: Claim) -> None:
    for target in ("0000:7f:00.0", "/dev/vfio/devices/vfio99", "/dev/null", "/sys", ""):
        with pytest.raises(DeviceNotFoundError):
            DeviceFile(target)


def test_from_fd_takes_the_fd_over(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    node = first.refreshed().vfio_cdev
    assert node is not None
    fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    file = DeviceFile.from_fd(fd)
    assert (file.fileno(), file.name) == (fd, first.name)
    device = iommufd.bind(file)
    assert device.fileno() == fd
    assert device.config.vendor_id == 0x1234
    device.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_from_fd_leaves_what_an_object_owns(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    file = DeviceFile(first)
    with pytest.raises(ValueError, match=f"belongs to <DeviceFile {first.name}>"):
        DeviceFile.from_fd(file.fileno())
    device = iommufd.bind(file)
    with pytest.raises(ValueError, match=rf"belongs to <Device {device.id} {first.name}>.*os\.dup"):
        DeviceFile.from_fd(device.fileno())
    DeviceFile.from_fd(os.dup(device.fileno())).close()
    assert device.config.vendor_id == 0x1234


@pytest.mark.parametrize("path", ["/dev/null", "/dev/iommu", "/proc/self/status", "/"])
def test_from_fd_of_something_else_leaves_it_open(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(ValueError, match="not that of a vfio cdev"):
        DeviceFile.from_fd(fd)
    os.close(fd)


def test_from_fd_of_a_closed_fd() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        DeviceFile.from_fd(fd)


def test_unclosed_file_warns(claimed: Claim, first: HostDevice) -> None:
    file = DeviceFile(first)
    with pytest.warns(ResourceWarning, match=first.name):
        del file
    assert holders(first.refreshed()) == ()
