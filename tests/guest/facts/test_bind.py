"""What the kernel does to a whole IOMMU group when one of its devices is bound, and when it lets that happen."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    GroupNotViableError,
    HostDevice,
    IoctlError,
    find_group,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.facts.members import names, on_driver, unbound_edu

IOVA = 0x100000

Arrives = Callable[[EduDriver, DMABuffer], bool]


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
    with unbound_edu(peer) as other:
        with iommufd.bind(first) as device:
            device.attach(ioas)
            assert arrives(other, buffer)
        with iommufd.bind(first) as device:
            assert device.bind_change.kind is ChangeKind.FIRST
            assert not arrives(other, buffer)


def test_a_later_bind_changes_nothing_and_the_device_shares_the_table_of_its_peers(
    device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    peer: HostDevice,
) -> None:
    device.attach(ioas)
    bound = iommufd.bind(peer)
    assert (bound.bind_change.kind, bound.bind_change.devices) == (ChangeKind.NOOP, ())
    assert arrives(edu, buffer)
    bound.bus_master = True
    with EduDriver(bound) as other:
        assert bound.page_table is None
        assert arrives(other, buffer)


def test_the_third_bind_of_a_blocked_group_leaves_it_blocked(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    kinds = [one.bind_change.kind for one in (device, peer_device, third_device)]
    assert kinds == [ChangeKind.FIRST, ChangeKind.NOOP, ChangeKind.NOOP]
    assert not arrives(edu, buffer)
    assert not arrives(peer_edu, buffer)


@pytest.mark.parametrize("driver", ["vfio-pci", "pci-stub", None])
def test_safe_beside_a_bound_device(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, neighbour: HostDevice, driver: str | None
) -> None:
    with on_driver(neighbour, driver):
        assert first.group_id is not None
        assert find_group(first.group_id).viable
        iommufd.bind(first).close()


def test_a_host_driver_is_not_safe_beside_a_bound_device(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice, neighbour: HostDevice
) -> None:
    with on_driver(neighbour, "virtio-pci"):
        for one in (first, peer):
            with pytest.raises(GroupNotViableError) as caught:
                iommufd.bind(one)
            assert caught.value.errno == errno.EPERM
            assert [blocker.name for blocker in caught.value.blockers] == [neighbour.name]
    iommufd.bind(first).close()


def test_a_viable_group_is_not_yet_a_bindable_one(
    device: Device, peer: HostDevice, neighbour: HostDevice, first: HostDevice
) -> None:
    assert first.group_id is not None
    with IOMMUFD() as other:
        for one in (peer, neighbour):
            assert find_group(first.group_id).viable
            with pytest.raises(IoctlError) as caught:
                other.bind(one)
            assert caught.value.errno == errno.EPERM
            assert str(os.getpid()) in str(caught.value)
        device.close()
        other.bind(peer).close()
