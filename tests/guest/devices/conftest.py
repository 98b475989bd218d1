"""What the tests of other devices than edu share. tests/boot/test_devices.py starts the guests that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyiommufd import IOMMUFD, Claim, Device, HostDevice, find_device, list_devices, plan_claim, recover


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """These tests ask for single devices, and not for the layout that those above need."""
    recover()


@pytest.fixture(scope="session")
def claim() -> Iterator[Callable[[int, int], HostDevice]]:
    """Takes the first device of a vendor and device id, to the end of the run."""
    claims: dict[tuple[int, int], Claim] = {}

    def claim(vendor: int, device: int) -> HostDevice:
        if (vendor, device) not in claims:
            found = [one for one in list_devices("pci") if (one.vendor_id, one.device_id) == (vendor, device)]
            if not found:
                pytest.skip(f"this guest has no {vendor:04x}:{device:04x}: run tests/boot/test_devices.py")
            claims[vendor, device] = plan_claim(found[0]).apply()
        return find_device(claims[vendor, device].devices[0].name)

    yield claim
    for one in claims.values():
        one.release()


@pytest.fixture
def bind(claim: Callable[[int, int], HostDevice], iommufd: IOMMUFD) -> Callable[[int, int], Device]:
    """Claims a device by vendor and device id, and binds it; bus mastering on."""

    def bind(vendor: int, device: int) -> Device:
        bound = iommufd.bind(claim(vendor, device))
        bound.bus_master = True
        return bound

    return bind
