"""Devices, on whatever machine this is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiommufd import DeviceNotFoundError, find_device, list_devices
from pyiommufd.host.discovery.devices import as_device, from_sys_path
from tests.fake_sysfs import FakeSysfs


def test_every_device_is_found_by_its_name_and_path() -> None:
    for device in list_devices():
        assert find_device(device.name) == device
        assert find_device(str(device.sys_path)) == device
        assert as_device(device.sys_path) == device
        assert device.refreshed() == device


def test_list_is_what_sysfs_has() -> None:
    folder = Path("/sys/bus/pci/devices")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    assert [device.name for device in list_devices("pci")] == names


@given(st.text(max_size=30))
def test_no_name_is_more_than_not_found(name: str) -> None:
    try:
        device = find_device(name)
    except DeviceNotFoundError:
        return
    assert device in list_devices()


def test_folder_without_a_device(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/")):
        with pytest.raises(DeviceNotFoundError):
            from_sys_path(path)


def test_tree_that_lacks_every_attribute(tmp_path: Path) -> None:
    """A kernel may leave out any of them."""
    (tmp_path / "bus/odd").mkdir(parents=True)
    folder = tmp_path / "devices/dev0"
    folder.mkdir(parents=True)
    (folder / "subsystem").symlink_to("../../bus/odd")
    device = from_sys_path(folder)
    assert (device.name, device.subsystem, device.sys_path, device.on_vfio) == ("dev0", "odd", folder, False)
    assert (device.vendor_id, device.driver, device.group_id, device.vfio_cdev) == (None, None, None, None)
    assert device.group is None
    (folder / "vendor").write_text("no number\n")
    (folder / "numa_node").write_text("-1\n")
    (folder / "vfio-dev/vfio3").mkdir(parents=True)
    device = from_sys_path(folder)
    # A vfio driver has it, and the kernel has no cdevs: the folder alone is no node.
    assert (device.vendor_id, device.numa_node, device.vfio_cdev, device.on_vfio) == (None, None, None, True)
    (folder / "vfio-dev/vfio3/dev").write_text("240:3\n")
    assert from_sys_path(folder).vfio_cdev == "/dev/vfio/devices/vfio3"


@pytest.mark.parametrize(
    ("class_code", "bridge", "expected"),
    [
        (0x060400, None, True),
        (0x060700, None, True),
        (0x060000, None, False),
        (0x060100, None, False),
        (0x068000, None, False),
        (0x088000, True, True),
        (0x020000, None, False),
    ],
)
def test_bridges_are_told_by_their_header(
    fake: FakeSysfs, class_code: int, bridge: bool | None, expected: bool
) -> None:
    """Not by their class: LPC controllers and NVSwitches have that of bridges, and are none for vfio-pci."""
    fake.pci("0000:00:01.0", class_code=class_code, bridge=bridge)
    assert find_device("0000:00:01.0").is_bridge == expected


def test_header_is_told_without_waking_the_device(fake: FakeSysfs) -> None:
    """To read either wakes it (Linux 7.3, drivers/pci/pci-sysfs.c:268 and 731), and would not return from a pipe."""
    folder = fake.pci("0000:00:01.0", class_code=0x060400)
    (folder / "secondary_bus_number").unlink()
    os.mkfifo(folder / "secondary_bus_number")
    os.mkfifo(folder / "config")
    assert find_device("0000:00:01.0").is_bridge
