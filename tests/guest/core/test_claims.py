"""Claims: planned without a change, and given back exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import Group, HostDevice, plan_claim
from pyiommufd.host import drivers

Members = Callable[[Group], dict[str, tuple[str | None, str | None]]]


@pytest.mark.long
def test_a_claim_takes_a_device_and_restores_its_override(lone: HostDevice, members: Members) -> None:
    group = lone.group
    assert group is not None
    drivers.set_driver_override(lone, "pci-stub")
    try:
        before = members(group)
        with plan_claim(lone).apply() as claim:
            assert claim.devices == (lone,)
            assert lone.refreshed().driver == "vfio-pci"
            assert Path(lone.refreshed().vfio_cdev or "no cdev").is_char_device()
        assert members(group) == before == {lone.name: (None, "pci-stub")}
    finally:
        drivers.set_driver_override(lone, None)


def test_a_plan_names_the_companions_and_changes_nothing(
    shared: Group, shared_edus: tuple[HostDevice, ...], host_driven: HostDevice, members: Members
) -> None:
    before = members(shared)
    plan = plan_claim(shared_edus[0])
    assert set(plan.companions) == set(shared.devices) - {shared_edus[0]}
    assert not shared.viable
    assert {move.device for move in plan.moves} == {*shared_edus, host_driven}
    assert plan.refusals == ()
    assert members(shared) == before


@pytest.mark.long
def test_a_claim_of_a_shared_group_restores_every_member(
    shared: Group, shared_edus: tuple[HostDevice, ...], host_driven: HostDevice, members: Members
) -> None:
    before = members(shared)
    assert before[host_driven.name] == ("virtio-pci", None)
    with plan_claim(shared_edus[0]).apply():
        during = members(shared)
        assert {during[device.name][0] for device in (*shared_edus, host_driven)} == {"vfio-pci"}
    assert members(shared) == before


@pytest.mark.long
def test_a_released_claim_leaves_the_host_driver_at_work(
    bridged_dma: None, shared_edus: tuple[HostDevice, ...]
) -> None:
    with plan_claim(shared_edus[0]).apply():
        pass
    with open("/dev/hwrng", "rb") as generator:
        assert len(generator.read(16)) == 16
