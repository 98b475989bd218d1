"""A machine whose IOMMU is off or missing: what cannot be done is refused, and said why."""

from __future__ import annotations

import pytest

from pyiommufd import IOMMUFD, ClaimRefusedError, HostDevice, NotFoundError, list_groups, plan_claim


@pytest.fixture
def uncovered(all_edus: tuple[HostDevice, ...]) -> HostDevice:
    if all_edus[0].group_id is not None:
        pytest.skip("an IOMMU covers the devices here")
    return all_edus[0]


def test_a_claim_is_refused_for_want_of_an_iommu(uncovered: HostDevice) -> None:
    (refusal,) = plan_claim(uncovered).refusals
    assert (refusal.device, refusal.kind) == (uncovered.name, "noiommu")
    with pytest.raises(ClaimRefusedError, match="IOMMU") as caught:
        plan_claim(uncovered).apply()
    assert uncovered.name in str(caught.value)
    assert "intel_iommu=on" in str(caught.value)
    assert uncovered.refreshed().driver is None


def test_there_is_no_group_and_nothing_to_bind(uncovered: HostDevice, iommufd: IOMMUFD) -> None:
    assert list_groups() == []
    assert uncovered.group is None
    with pytest.raises(NotFoundError) as caught:
        iommufd.bind(uncovered)
    assert uncovered.name in str(caught.value)
    assert iommufd.devices == ()
