"""What is found on the machine is what sysfs has."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import DeviceNotFoundError, HostDevice, find_device, list_devices, list_groups

IOMMUS = {
    "intel": "dmar",
    "intel-first-stage": "dmar",
    "amd": "ivhd",
    "virtio": "0000:",
    "smmuv3": "smmu3.",
    "smmuv3-nested": "smmu3.",
}


def test_every_pci_device_is_listed(all_edus: tuple[HostDevice, ...]) -> None:
    there = {path.name for path in Path("/sys/bus/pci/devices").iterdir()}
    assert {device.name for device in list_devices("pci")} == there
    assert len(all_edus) >= 2


def test_a_device_is_found_by_name_and_not_by_an_id_that_several_have(all_edus: tuple[HostDevice, ...]) -> None:
    edu = all_edus[0]
    assert find_device(edu.name) == find_device(edu.name.removeprefix("0000:")) == edu
    assert (edu.vendor_id, edu.device_id) == (0x1234, 0x11E8)
    with pytest.raises(DeviceNotFoundError) as caught:
        find_device("1234:11e8")
    assert all(device.name in str(caught.value) for device in all_edus)


def test_groups_are_those_of_sysfs(kind: str) -> None:
    there = {
        int(path.name): {link.name for link in (path / "devices").iterdir()}
        for path in Path("/sys/kernel/iommu_groups").glob("*")
    }
    assert {group.id: {device.name for device in group.devices} for group in list_groups()} == there
    assert bool(there) == (kind != "none")


def test_devices_name_the_iommu_that_translates_for_them(all_edus: tuple[HostDevice, ...], kind: str) -> None:
    for edu in all_edus:
        if kind == "none":
            assert (edu.iommu, edu.group_id, edu.group) == (None, None, None)
        else:
            assert edu.iommu is not None
            assert edu.iommu.startswith(IOMMUS[kind])
            assert edu.group is not None
            assert edu in edu.group.devices
