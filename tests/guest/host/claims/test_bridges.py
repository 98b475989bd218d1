"""What a bridge is: what vfio-pci refuses, which goes by the header and not by the class."""

from __future__ import annotations

import contextlib
import errno

import pytest

from pyiommufd import IOAS, IOMMUFD, ClaimError, HostDevice, find_device, list_devices, plan_claim
from pyiommufd.host import drivers
from pyiommufd.host.overview.standing import Standing, standings

LPC, HOST_BRIDGE = 0x0601, 0x0600


def of_class(code: int) -> HostDevice:
    found = [device for device in list_devices("pci") if (device.class_code or 0) >> 8 == code]
    if not found:
        pytest.skip(f"this machine has no device of class {code:04x}")
    return found[0]


def test_header_says_which_devices_are_bridges() -> None:
    devices = list_devices("pci")
    assert {True, False} == {device.is_bridge for device in devices}
    for device in devices:
        assert device.is_bridge == ((device.sys_path / "config").read_bytes()[0x0E] & 0x7F != 0), device


@pytest.mark.parametrize("code", [LPC, HOST_BRIDGE])
def test_device_of_the_class_of_bridges_is_claimed_bound_and_given_back(code: int) -> None:
    device = of_class(code)
    assert standings(list_devices())[device] is Standing.CLAIMABLE
    group = device.group
    assert group is not None
    before = {member.name: (member.driver, drivers.driver_override(member)) for member in group.devices}
    with plan_claim(device).apply() as claim, IOMMUFD() as iommufd:
        # Its companions as well: none of these is left without a driver.
        assert all(member.refreshed().on_vfio for member in group.devices)
        assert claim.plan.stays == ()
        bound = iommufd.bind(device)
        assert bound.config.vendor_id == device.vendor_id
        ioas: IOAS = iommufd.alloc_ioas()
        bound.attach(ioas)
    after = {member.name: (member.refreshed().driver, drivers.driver_override(member)) for member in group.devices}
    assert after == before


def test_lpc_controller_is_a_companion_like_any_other() -> None:
    lpc = of_class(LPC)
    assert lpc.group is not None
    others = [member for member in lpc.group.devices if member != lpc]
    if not others:
        pytest.skip("it is alone in its group")
    with plan_claim(others[0]).apply():
        assert lpc.refreshed().driver == "vfio-pci"


def test_vfio_pci_takes_no_device_with_the_header_of_a_bridge(bridge: HostDevice) -> None:
    with pytest.raises(ClaimError, match="is a bridge"):
        plan_claim(bridge)
    assert bridge.driver is None
    drivers.set_driver_override(bridge, "vfio-pci")
    try:
        with pytest.raises(OSError, match="Invalid argument") as caught:
            drivers.bind(bridge, "vfio-pci")
        assert caught.value.errno == errno.EINVAL
    finally:
        with contextlib.suppress(OSError):
            drivers.unbind(bridge)
        drivers.set_driver_override(bridge, None)
    assert find_device(bridge.name).driver is None
