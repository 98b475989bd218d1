"""Which page table a whole IOMMU group is on when its devices are attached, in whatever order."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    Device,
    DMABuffer,
    DMAMapping,
    GroupConflictError,
    HostDevice,
    Verdict,
)
from pyiommufd.host import drivers
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.facts.members import names, on_driver, unbound_edu

IOVA = 0x100000

Arrives = Callable[[EduDriver, DMABuffer], bool]


def test_a_peer_that_is_not_attached_may_only_join_the_page_table_of_the_group(
    device: Device, peer_device: Device, iommufd: IOMMUFD, ioas: IOAS
) -> None:
    device.attach(ioas)
    other = iommufd.alloc_ioas()
    with pytest.raises(GroupConflictError) as caught:
        peer_device.attach(other)
    assert caught.value.errno == errno.EINVAL
    assert peer_device.attach(ioas).kind is ChangeKind.JOIN


def test_a_third_device_that_is_not_attached_is_refused_and_both_peers_are_named(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    peer_device.attach(ioas)
    other = iommufd.alloc_ioas()
    preview = third_device.preview_attach(other)
    assert (preview.verdict, preview.kind, preview.changes) == (Verdict.REFUSED, ChangeKind.JOIN, ())
    with pytest.raises(GroupConflictError) as caught:
        third_device.attach(other)
    assert caught.value.errno == errno.EINVAL
    assert {found.name for found in caught.value.peers} == {device.name, peer_device.name}
    assert third_device.page_table is None
    assert arrives(edu, buffer)


def test_devices_of_another_group_take_another_page_table(
    device: Device, lone_device: Device, edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, arrives: Arrives
) -> None:
    here, there = DMABuffer(4096), DMABuffer(4096)
    ioas.map(here, iova=IOVA)
    other = iommufd.alloc_ioas()
    other.map(there, iova=IOVA)
    device.attach(ioas)
    assert lone_device.attach(other).kind is ChangeKind.FIRST
    there[:64] = bytes(64)
    assert arrives(edu, here)
    assert there[:64] == bytes(64)
    with EduDriver(lone_device) as lone_edu:
        kept = here[:64]
        assert arrives(lone_edu, there)
        assert here[:64] == kept


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


def test_the_first_attach_is_anyones_of_the_group(
    peer_device: Device, third_device: Device, edu: EduDriver, peer_edu: EduDriver, ioas: IOAS, arrives: Arrives
) -> None:
    """The third device, which does no DMA itself here, moves the two that do."""
    buffer = DMABuffer(4096)
    ioas.map(buffer, iova=IOVA)
    assert third_device.attach(ioas).kind is ChangeKind.FIRST
    assert arrives(edu, buffer)
    assert arrives(peer_edu, buffer)
    third_device.detach()
    assert not arrives(edu, buffer)


def test_a_later_attach_to_the_same_table_changes_nobodys_dma(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    ranges = ioas.iova_ranges()
    for joining in (peer_device, third_device):
        change = joining.attach(ioas)
        assert (change.kind, change.devices) == (ChangeKind.JOIN, ())
        assert arrives(edu, buffer)
        assert arrives(peer_edu, buffer)
    # The three have the same reserved regions here: what a joining device adds to them is nothing.
    assert ioas.iova_ranges() == ranges


def test_state_belongs_to_the_group_whatever_the_order_of_attaches_and_detaches(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    arrives: Arrives,
) -> None:
    """Forty-eight random actions on three devices and two tables: each preview is compared with what then happens."""
    rng = random.Random(0)  # noqa: S311
    tables, buffers = (iommufd.alloc_ioas(), iommufd.alloc_ioas()), (DMABuffer(4096), DMABuffer(4096))
    for table, buffer in zip(tables, buffers, strict=True):
        table.map(buffer, iova=IOVA)
    devices = (device, peer_device, third_device)
    kinds = set()
    for turn in range(48):
        one, table = rng.choice(devices), rng.choice(tables)
        if rng.random() < 0.3:
            kinds.add(one.detach().kind)
        else:
            preview = one.preview_attach(table)
            act = one.attach if one.page_table is None else one.replace
            if preview.verdict is Verdict.REFUSED:
                with pytest.raises(GroupConflictError):
                    act(table)
            else:
                assert preview.verdict is Verdict.ACCEPTED
                change = act(table)
                assert (change.kind, change.devices) == (preview.kind, preview.changes)
                kinds.add(change.kind)
        on = {other.page_table for other in devices} - {None}
        assert len(on) <= 1
        if turn % 6 == 5:
            for table, buffer in zip(tables, buffers, strict=True):
                assert arrives(edu, buffer) == (table in on)
    assert kinds == set(ChangeKind)
