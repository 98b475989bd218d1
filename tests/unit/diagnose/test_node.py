"""Causes of a node that cannot be opened."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pyiommufd import HostDevice
from pyiommufd.diagnose import node
from pyiommufd.diagnose.node import open_cdev_causes, open_iommufd_causes
from pyiommufd.host.holders import Holder


def device(driver: str | None, *, cdev: str | None = None, on_vfio: bool = False) -> HostDevice:
    path = Path("/sys/devices/none")
    return HostDevice("0000:02:01.0", "pci", path, 1, 2, 3, driver, None, None, None, cdev, on_vfio)


@pytest.mark.parametrize("driver", [None, "nvme"])
def test_device_that_is_not_claimed(driver: str | None) -> None:
    (cause,) = open_cdev_causes(errno.ENOENT, device(driver))
    assert (driver or "no driver") in cause.evidence
    assert "claim" in cause.fix


def test_kernel_without_cdevs() -> None:
    (cause,) = open_cdev_causes(errno.ENOENT, device("vfio-pci", on_vfio=True))
    assert "CONFIG_VFIO_DEVICE_CDEV" in cause.fix


def test_kernel_without_nodes_for_devices_without_an_iommu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "has_cdevs", lambda: True)
    without = replace(device("vfio-pci", on_vfio=True), group_id=4, without_iommu=True)
    (cause,) = open_cdev_causes(errno.ENOENT, without)
    assert "no nodes" in cause.summary
    assert "/dev/vfio/noiommu-4" in cause.fix
    monkeypatch.setattr(node, "has_cdevs", lambda: False)
    (cause,) = open_cdev_causes(errno.ENOENT, without)
    assert "CONFIG_VFIO_DEVICE_CDEV" in cause.fix


def test_node_for_which_a_capability_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "noiommu-vfio0"
    path.touch()
    monkeypatch.setattr(node, "has_capability", lambda number: False)
    for without, words in ((True, "CAP_SYS_RAWIO"), (False, "may not open")):
        held = replace(device("vfio-pci", cdev=str(path), on_vfio=True), without_iommu=without)
        (cause,) = open_cdev_causes(errno.EPERM, held)
        assert words in cause.summary


def test_node_that_a_container_lacks() -> None:
    (cause,) = open_cdev_causes(errno.ENOENT, device("vfio-pci", cdev="/dev/vfio/devices/vfio0", on_vfio=True))
    assert "container" in cause.fix


def test_node_without_permission(tmp_path: Path) -> None:
    node = tmp_path / "vfio0"
    node.touch()
    node.chmod(0o600)
    (cause,) = open_cdev_causes(errno.EACCES, device("vfio-pci", cdev=str(node), on_vfio=True))
    assert "mode 0600" in cause.evidence
    (cause,) = open_iommufd_causes(errno.EACCES, str(node))
    assert "udev rule" in cause.fix


def test_node_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    held = device("vfio-pci", cdev="/dev/vfio/devices/vfio0", on_vfio=True)
    holders = (Holder(os.getpid(), "python", "/dev/vfio/devices/vfio0", "fd 7"), Holder(1, "a", "/dev/vfio/5", "fd 3"))
    monkeypatch.setattr(node, "holders", lambda *devices: holders)
    mine, other = open_cdev_causes(errno.EBUSY, held)
    assert mine.summary == "this process has it open already"
    assert mine.evidence == f"this process (pid {os.getpid()}) holds /dev/vfio/devices/vfio0 by fd 7"
    assert "among the devices of its IOMMUFD" in mine.fix
    assert other.evidence == "pid 1 (a) holds /dev/vfio/5 by fd 3"


def test_iommufd_that_is_not_there() -> None:
    (cause,) = open_iommufd_causes(errno.ENOENT, "/dev/iommu")
    assert cause.fix
    assert open_iommufd_causes(errno.EMFILE, "/dev/iommu") == ()
