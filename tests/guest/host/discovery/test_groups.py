"""IOMMU groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import Claim, DeviceNotFoundError, HostDevice, find_group, list_groups

GROUPS = Path("/sys/kernel/iommu_groups")


def test_list_is_what_sysfs_has() -> None:
    groups = list_groups()
    assert [group.id for group in groups] == sorted(int(path.name) for path in GROUPS.iterdir())
    for group in groups:
        members = sorted(path.name for path in (GROUPS / str(group.id) / "devices").iterdir())
        assert [device.name for device in group.devices] == members
        assert all(device.group_id == group.id for device in group.devices)
        assert group.type == (GROUPS / str(group.id) / "type").read_text().strip()


def test_group_of_a_device(
    first: HostDevice, peer: HostDevice, neighbour: HostDevice, bridge: HostDevice, alone: HostDevice
) -> None:
    group = first.group
    assert group is not None
    assert set(group.devices) == {first, peer, neighbour, bridge}
    assert group == peer.group
    assert group != alone.group
    assert group.blockers == (neighbour,)
    assert not group.viable


def test_group_without_a_host_driver_is_viable(alone: HostDevice) -> None:
    group = alone.group
    assert group is not None
    assert group.devices == (alone,)
    assert group.viable
    assert group.blockers == ()


def test_claimed_group_is_viable(claimed: Claim, first: HostDevice, neighbour: HostDevice) -> None:
    group = first.group
    assert group is not None
    assert group.viable
    assert {device.driver for device in group.devices} == {None, "vfio-pci"}


def test_reserved_regions(first: HostDevice) -> None:
    group = first.group
    assert group is not None
    found = {(region.start, region.last, region.type) for region in group.reserved_regions}
    # Where x86 writes its interrupts.
    assert (0xFEE0_0000, 0xFEEF_FFFF, "msi") in found
    lines = (GROUPS / str(group.id) / "reserved_regions").read_text().splitlines()
    assert len(group.reserved_regions) == len(lines)


def test_no_such_group() -> None:
    for number in (-1, 4711):
        with pytest.raises(DeviceNotFoundError, match=str(number)):
            find_group(number)
    with pytest.raises(TypeError):
        find_group("0")  # type: ignore[arg-type]
