"""What the tests of other devices than edu share. tests/boot/test_devices.py starts the guests that have them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyiommufd import IOMMUFD, Claim, Device, HostDevice, list_devices, plan_claim, recover
from tests.guest.devices.factories import Binder, Claimer


@pytest.fixture(scope="session", autouse=True)
def right_machine() -> None:
    """These tests ask for single devices, and not for those of the default guest."""
    recover()


@pytest.fixture(scope="session")
def claim() -> Iterator[Claimer]:
    """Takes a device, with its group, to the end of the run."""
    claims: list[Claim] = []
    taken: set[str] = set()

    def claim(vendor: int, device: int, place: int = 0) -> HostDevice:
        found = [one for one in list_devices("pci") if (one.vendor_id, one.device_id) == (vendor, device)]
        if len(found) <= place:
            pytest.skip(f"this guest lacks a {vendor:04x}:{device:04x}: run tests/boot/test_devices.py")
        wanted = found[place]
        if wanted.name not in taken:
            claims.append(plan_claim(wanted).apply())
            group = wanted.group
            taken.update(one.name for one in (group.devices if group else (wanted,)))
        return wanted.refreshed()

    yield claim
    for one in claims:
        one.release()


@pytest.fixture
def bind(claim: Claimer, iommufd: IOMMUFD) -> Binder:
    """Claims a device and binds it; bus mastering on."""

    def bind(vendor: int, device: int, place: int = 0) -> Device:
        bound = iommufd.bind(claim(vendor, device, place))
        bound.bus_master = True
        return bound

    return bind
