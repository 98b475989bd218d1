"""Members of an IOMMU group that are not bound: on the page table of the group, and blocked with it, as bound ones."""

from __future__ import annotations

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    HostDevice,
    find_group,
)
from pyiommufd.host import drivers
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives
from tests.guest.kernel.members import names, on_driver, unbound_edu


def test_the_first_bind_blocks_the_dma_of_every_member(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice, members: set[str], arrives: Arrives
) -> None:
    ioas, buffer = iommufd.alloc_ioas(), DMABuffer(4096)
    ioas.map(buffer, iova=IOVA)
    device = iommufd.bind(first)
    assert device.bind_change.kind is ChangeKind.FIRST
    assert names(device.bind_change.devices) == members
    device.bus_master = True
    with EduDriver(device) as edu, unbound_edu(peer) as other:
        assert not arrives(edu, buffer)
        assert not arrives(other, buffer)
        # It is the block, and not the test, that keeps it from arriving.
        device.attach(ioas)
        assert arrives(edu, buffer)
        assert arrives(other, buffer)


def test_a_first_bind_after_an_attached_device_was_unbound_blocks_again(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice, arrives: Arrives
) -> None:
    ioas, buffer = iommufd.alloc_ioas(), DMABuffer(4096)
    ioas.map(buffer, iova=IOVA)
    with iommufd.bind(first) as device, unbound_edu(peer) as other:
        device.attach(ioas)
        assert arrives(other, buffer)
    # The close has turned bus mastering of the peer off as well; `unbound_edu` turns it on again.
    with iommufd.bind(first) as device, unbound_edu(peer) as other:
        assert device.bind_change.kind is ChangeKind.FIRST
        assert not arrives(other, buffer)
        device.attach(ioas)
        assert arrives(other, buffer)


@pytest.mark.parametrize("driver", ["vfio-pci", None, "pci-stub"])
def test_the_first_attach_moves_members_that_are_not_bound(
    device: Device,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    peer: HostDevice,
    members: set[str],
    driver: str | None,
) -> None:
    with on_driver(peer, driver), unbound_edu(peer) as other:
        assert drivers.driver_of(peer) == driver
        assert not arrives(other, buffer)
        change = device.attach(ioas)
        assert change.kind is ChangeKind.FIRST
        assert names(change.devices) == members
        assert arrives(other, buffer)
        device.detach()
        assert not arrives(other, buffer)


def test_a_replace_moves_a_member_that_is_not_bound(
    device: Device, iommufd: IOMMUFD, ioas: IOAS, peer: HostDevice, arrives: Arrives
) -> None:
    here, there, other = DMABuffer(4096), DMABuffer(4096), iommufd.alloc_ioas()
    ioas.map(here, iova=IOVA)
    other.map(there, iova=IOVA)
    with on_driver(peer, None), unbound_edu(peer) as driverless:
        device.attach(ioas)
        assert arrives(driverless, here)
        device.replace(other)
        assert arrives(driverless, there)


@pytest.mark.parametrize("driver", ["vfio-pci", "pci-stub", None])
def test_safe_beside_a_bound_device(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, neighbour: HostDevice, driver: str | None
) -> None:
    with on_driver(neighbour, driver):
        assert first.group_id is not None
        assert find_group(first.group_id).viable
        iommufd.bind(first).close()
