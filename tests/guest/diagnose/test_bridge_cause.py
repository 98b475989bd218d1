"""A bridge on shpchp stops its group as any host driver does; on a machine where the kernel puts it there."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import IOMMUFD, Cause, Claim, HostDevice, plan_claim
from pyiommufd.host import drivers
from tests.runner.causes import Prover

BIND = "VFIO_DEVICE_BIND_IOMMUFD"


def test_bridge_on_shpchp(prove: Prover, first: HostDevice, bridge: HostDevice, iommufd: IOMMUFD) -> None:
    if bridge.driver != "shpchp":
        pytest.skip("the bridge is not on shpchp; tests.runner.causes has a machine where it is")
    group = first.group
    assert group is not None
    (neighbour,) = [device for device in group.blockers if device != bridge]
    # By hand what people do by hand: the endpoints on vfio-pci, the bridge forgotten.
    drivers.load_driver("pci", "vfio-pci")
    for device in (first, neighbour):
        drivers.set_driver_override(device, "vfio-pci")
        drivers.unbind(device)
        drivers.bind(device, "vfio-pci")
    claims: list[Claim] = []

    def attempt() -> None:
        iommufd.bind(first).close()

    def fix(cause: Cause) -> None:
        assert "plan_claim(" in cause.fix
        claims.append(plan_claim(first).apply())

    try:
        prove("a bridge of the group is on shpchp", BIND, errno.EPERM, attempt, fix,
              cause=f"{bridge.name} is in the same IOMMU group and on the host driver shpchp",
              says=f"plan_claim([{first.name!r}]).apply()")  # fmt: skip
        assert bridge.refreshed().driver is None
    finally:
        for claim in claims:
            claim.release()
        for device in (first, neighbour):
            drivers.unbind(device)
            drivers.set_driver_override(device, None)
        drivers.bind(neighbour, neighbour.driver or "")
    # Given back as it was.
    assert bridge.refreshed().driver == "shpchp"
