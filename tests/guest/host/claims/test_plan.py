"""Plans: the whole group, said before anything is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import Claim, ClaimError, DeviceNotFoundError, HostDevice, find_device, plan_claim
from pyiommufd.host import drivers


def test_plan_concerns_the_whole_group(
    first: HostDevice, peer: HostDevice, neighbour: HostDevice, bridge: HostDevice
) -> None:
    plan = plan_claim(first)
    assert plan.devices == (first,)
    assert set(plan.companions) == {peer, neighbour, bridge}
    assert [(move.device, move.driver) for move in plan.moves] == [
        (device, "vfio-pci") for device in sorted((first, peer, neighbour), key=lambda device: device.name)
    ]
    assert plan.stays == (bridge,)
    assert plan.refusals == ()
    text = str(plan)
    assert f"{neighbour.name}: virtio-pci -> vfio-pci  (companion)" in text
    assert f"{first.name}: no driver -> vfio-pci\n" in text
    assert f"{bridge.name}: stays on no driver" in text


def test_planning_changes_nothing(first: HostDevice, neighbour: HostDevice) -> None:
    plan_claim([first, neighbour])
    assert first.refreshed().driver is None
    assert neighbour.refreshed().driver == "virtio-pci"
    assert drivers.driver_override(first) is None


def test_devices_of_two_groups(first: HostDevice, alone: HostDevice) -> None:
    plan = plan_claim([alone.name, first, first.sys_path, first])
    assert plan.devices == (alone, first)
    assert [group.id for group in plan.groups] == [alone.group_id, first.group_id]
    assert alone not in plan.companions


def test_plan_of_a_claimed_device_moves_nothing(claimed: Claim, first: HostDevice) -> None:
    plan = plan_claim(first)
    assert plan.moves == ()
    assert first in plan.stays


def test_bridge_cannot_be_claimed(bridge: HostDevice) -> None:
    with pytest.raises(ClaimError, match="bridge"):
        plan_claim(bridge)


def test_nothing_to_claim() -> None:
    with pytest.raises(ValueError, match="no device"):
        plan_claim([])
    with pytest.raises(DeviceNotFoundError):
        plan_claim("0000:7f:00.0")
    with pytest.raises(DeviceNotFoundError):
        plan_claim(Path("/sys/devices/none"))
    with pytest.raises(TypeError):
        plan_claim([7])  # type: ignore[list-item]


def test_member_on_pci_stub_stays_unless_it_is_named(peer: HostDevice, first: HostDevice) -> None:
    drivers.set_driver_override(peer, "pci-stub")
    try:
        drivers.bind(peer, "pci-stub")
        assert find_device(peer.name) in plan_claim(first).stays
        assert peer in [move.device for move in plan_claim([first, peer]).moves]
    finally:
        drivers.unbind(peer)
        drivers.set_driver_override(peer, None)
