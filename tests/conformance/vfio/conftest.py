"""The fixtures of the VFIO programs. Who runs the twins has claimed the device for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pyiommufd import IOAS, IOMMUFD, Device, HostDevice, find_device
from pyiommufd.testing.drivers import igb


@pytest.fixture(scope="session")
def host() -> HostDevice:
    """The device, on its vfio driver."""
    host = find_device(f"{igb.VENDOR_ID:04x}:{igb.DEVICE_ID:04x}")
    assert host.on_vfio, f"{host.name} has not been claimed"
    return host


@pytest.fixture
def iommufd() -> Iterator[IOMMUFD]:
    with IOMMUFD() as iommufd:
        yield iommufd


@dataclass(frozen=True)
class Space:
    """An address space, and the device that is attached to it.

    Attributes:
        ioas: The address space.
        device: The device.
    """

    ioas: IOAS
    device: Device


@pytest.fixture
def attached(host: HostDevice, iommufd: IOMMUFD) -> Space:
    """The device, bound and attached to an address space of its own."""
    device = iommufd.bind(host)
    ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    return Space(ioas, device)


@pytest.fixture(params=["iommufd"])
def space(request: pytest.FixtureRequest, attached: Space) -> Space:
    """The same, for cases whose C programs have containers as variants beside it."""
    assert request.param == "iommufd"
    return attached
