"""Finding devices: every way to name one, and what a snapshot says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import Claim, DeviceNotFoundError, HostDevice, find_device, list_devices

SYS = Path("/sys/bus/pci/devices")


def test_list_is_what_sysfs_has() -> None:
    devices = list_devices("pci")
    assert [device.name for device in devices] == sorted(path.name for path in SYS.iterdir())
    assert set(devices) <= set(list_devices())


def test_list_of_a_bus_without_devices() -> None:
    assert list_devices("mdev") == []
    with pytest.raises(ValueError, match="usb"):
        list_devices("usb")


def test_snapshot(first: HostDevice, neighbour: HostDevice, bridge: HostDevice) -> None:
    assert (first.subsystem, first.vendor_id, first.device_id) == ("pci", 0x1234, 0x11E8)
    assert first.sys_path == (SYS / first.name).resolve()
    assert first.class_code == int((SYS / first.name / "class").read_text(), 16)
    assert (first.driver, first.vfio_cdev, first.on_vfio, first.is_bridge) == (None, None, False, False)
    assert first.iommu is not None
    assert first.group_id == neighbour.group_id == bridge.group_id
    assert neighbour.driver == (SYS / neighbour.name / "driver").resolve().name == "virtio-pci"
    assert bridge.is_bridge
    assert first.numa_node is None


@pytest.mark.parametrize("how", ["full", "upper case", "short", "blanks", "sysfs", "bus", "resolved"])
def test_names_of_one_device(first: HostDevice, how: str) -> None:
    name = {
        "full": first.name,
        "upper case": first.name.upper(),
        "short": first.name.split(":", 1)[1],
        "blanks": f" {first.name}\n",
        "sysfs": str(first.sys_path),
        "bus": f"/sys/bus/pci/devices/{first.name}",
        "resolved": f"{first.sys_path}/../{first.name}/",
    }[how]
    assert find_device(name) == first


def test_vendor_and_device(first: HostDevice, peer: HostDevice, alone: HostDevice, neighbour: HostDevice) -> None:
    assert find_device(f"{neighbour.vendor_id:04x}:{neighbour.device_id:04X}") == neighbour
    with pytest.raises(DeviceNotFoundError, match="ambiguous") as caught:
        find_device("1234:11e8")
    for device in (first, peer, alone):
        assert device.name in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "0000:7f:1f.7",
        "7f:1f.7",
        "dead:beef",
        "../../../devices",
        "..",
        "nothing",
        "\0",
        "/",
        "/sys",
        "/sys/devices/no",
        "/dev/null",
        "/dev/vfio/devices/vfio77",
        "0" * 5000,
    ],
)
def test_names_of_none(name: str) -> None:
    with pytest.raises(DeviceNotFoundError):
        find_device(name)


@pytest.mark.parametrize("name", [None, 7, b"0000:00:01.0"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(TypeError):
        find_device(name)


def test_snapshots_are_equal_by_name_and_do_not_change(first: HostDevice, alone: HostDevice) -> None:
    again = find_device(first.name)
    assert again == first
    assert len({again, first, alone}) == 2
    with pytest.raises(AttributeError):
        first.driver = "vfio-pci"  # type: ignore[misc]
    assert first.name in repr(first)
    assert str(first) == first.name


def test_snapshot_after_a_claim(claimed: Claim, first: HostDevice) -> None:
    now = first.refreshed()
    assert now == first
    assert (first.driver, now.driver, now.on_vfio) == (None, "vfio-pci", True)
    assert now.vfio_cdev is not None
    assert Path(now.vfio_cdev).is_char_device()
    assert find_device(now.vfio_cdev) == first
    assert claimed.devices == (first,)
    assert claimed.devices[0].driver == "vfio-pci"
