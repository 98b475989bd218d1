"""Attach, join, replace, detach and unbind in a group of several devices: whose DMA goes where, shown by the data."""

from __future__ import annotations

import errno
import random
import threading

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
    IoctlError,
    Verdict,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.by_id import destroy
from tests.guest.dma import IOVA, Arrives
from tests.guest.kernel.members import names


def test_data_goes_to_the_device_and_comes_back(device: Device, edu: EduDriver, ioas: IOAS) -> None:
    device.attach(ioas)
    buffer = DMABuffer(8192)
    ioas.map(buffer, iova=IOVA)
    data = bytes(range(256)) * 4
    buffer[: len(data)] = data
    edu.copy_in(IOVA, len(data))
    edu.copy_out(IOVA + 4096, len(data))
    assert buffer[4096 : 4096 + len(data)] == data
    assert buffer[4096 + len(data) :] == bytes(4096 - len(data))


def test_dma_is_blocked_before_attach_moves_after_and_is_blocked_after_detach(
    device: Device,
    edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    members: set[str],
) -> None:
    assert not arrives(edu, buffer)
    assert device.page_tables == {}
    change = device.attach(ioas)
    assert change.kind is ChangeKind.FIRST
    assert names(change.devices) == members
    assert device.page_tables == {None: ioas}
    assert arrives(edu, buffer)
    change = device.detach()
    assert change.kind is ChangeKind.DETACH
    assert names(change.devices) == members
    assert device.page_table is None
    assert not arrives(edu, buffer)


def test_bound_peer_shares_the_table_without_an_attach_of_its_own(
    device: Device, peer_edu: EduDriver, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping, arrives: Arrives
) -> None:
    assert not arrives(peer_edu, buffer)
    device.attach(ioas)
    assert peer_edu.device.page_table is None
    assert arrives(peer_edu, buffer)
    device.detach()
    assert not arrives(peer_edu, buffer)


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


def test_detach_blocks_when_the_last_of_three_detaches_and_not_before(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    members: set[str],
) -> None:
    for one in (device, peer_device, third_device):
        one.attach(ioas)
    for leaving in (device, peer_device):
        change = leaving.detach()
        assert (change.kind, change.devices) == (ChangeKind.DETACH, ())
        assert leaving.page_table is None
        assert arrives(edu, buffer)
        assert arrives(peer_edu, buffer)
    change = third_device.detach()
    assert change.kind is ChangeKind.DETACH
    assert names(change.devices) == members
    assert not arrives(edu, buffer)
    assert not arrives(peer_edu, buffer)


def test_detach_of_what_is_not_attached_changes_nothing(
    device: Device,
    peer_device: Device,
    edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    change = peer_device.detach()
    assert (change.kind, change.devices) == (ChangeKind.NOOP, ())
    assert arrives(edu, buffer)


def test_a_replace_moves_every_attached_peer_with_it(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    members: set[str],
) -> None:
    attached = (device, peer_device, third_device)
    for one in attached:
        one.attach(ioas)
    other, elsewhere = iommufd.alloc_ioas(), DMABuffer(4096)
    other.map(elsewhere, iova=IOVA)
    # By the one that was attached in the middle: whose replace it is does not matter.
    preview = peer_device.preview_attach(other)
    assert (preview.verdict, preview.kind) == (Verdict.ACCEPTED, ChangeKind.REPLACE)
    change = peer_device.replace(other)
    assert change.kind is ChangeKind.REPLACE
    assert names(change.devices) == names(preview.changes) == members
    # The same address, also from those that nobody named: it is other memory now.
    buffer[:64] = b"\x7a" * 64
    assert arrives(edu, elsewhere)
    assert arrives(peer_edu, elsewhere)
    assert buffer[:64] == b"\x7a" * 64
    assert [one.page_table for one in attached] == [other] * 3
    # The kernel has none of the three on the old table: it lets it go, and not the new one.
    ioas.close()
    with pytest.raises(IoctlError) as caught:
        destroy(iommufd, other.id)
    assert caught.value.errno == errno.EBUSY


def test_a_replace_has_no_gap(
    device: Device, peer_device: Device, peer_edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer
) -> None:
    """The same memory at the same address in both tables: a transfer goes there or, blocked, nowhere.

    No gap for anything else to be reached, that is. Most drivers of IOMMUs block a device before they give it the new
    table, so that a transfer may be lost; see `Device.replace`.
    """
    ioas.map(buffer, iova=IOVA)
    other = iommufd.alloc_ioas()
    other.copy_from(ioas, IOVA, len(buffer), dst_iova=IOVA)
    device.attach(ioas)
    peer_device.attach(ioas)
    data = bytes(range(1, 256)) * 8
    nothing = bytes(len(data))
    buffer[: len(data)] = data
    peer_edu.copy_in(IOVA, len(data))
    buffer[: len(data)] = nothing
    stop = False

    def swap() -> None:
        turns = 0
        while not stop:
            device.replace((other, ioas)[turns % 2])
            turns += 1
        swaps.append(turns)

    def written(offset: int) -> bool:
        """Transfer to the offset, which nothing else may have changed; then clear it again."""
        peer_edu.copy_out(IOVA + offset, len(data))
        found = buffer[offset : offset + len(data)]
        assert found in (data, nothing)
        buffer[offset : offset + len(data)] = nothing
        assert buffer[:] == bytes(len(buffer))
        return found == data

    swaps: list[int] = []
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        arrived = [written(2048 * turn) for turn in range(6)]
    finally:
        stop = True
        thread.join()
    assert swaps[0] > 1  # how many, is up to the machine
    assert any(arrived)
    assert written(0)


def test_devices_of_two_groups_share_an_address_space(
    device: Device,
    lone_device: Device,
    edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    alone: HostDevice,
) -> None:
    device.attach(ioas)
    change = lone_device.attach(ioas)
    assert change.kind is ChangeKind.FIRST
    assert change.devices == (alone,)
    with EduDriver(lone_device) as lone_edu:
        assert arrives(lone_edu, buffer)
        assert arrives(edu, buffer)
        device.detach()
        assert arrives(lone_edu, buffer)
        assert not arrives(edu, buffer)


def test_devices_of_another_group_take_another_page_table(
    device: Device, lone_device: Device, edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, arrives: Arrives
) -> None:
    here, there = DMABuffer(4096), DMABuffer(4096)
    ioas.map(here, iova=IOVA)
    other = iommufd.alloc_ioas()
    other.map(there, iova=IOVA)
    device.attach(ioas)
    assert lone_device.attach(other).kind is ChangeKind.FIRST
    there[:64] = b"\x7a" * 64
    assert arrives(edu, here)
    assert there[:64] == b"\x7a" * 64
    with EduDriver(lone_device) as lone_edu:
        here[:64] = b"\x7a" * 64
        assert arrives(lone_edu, there)
        assert here[:64] == b"\x7a" * 64


def test_unbind_of_an_attached_device_detaches_it_alone(
    device: Device,
    peer_device: Device,
    third_device: Device,
    peer_edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    third_device.attach(ioas)
    device.close()
    assert arrives(peer_edu, buffer)
    third_device.close()
    assert not arrives(peer_edu, buffer)
    # And the model agrees: the next attach is the first.
    assert peer_device.preview_attach(ioas).kind is ChangeKind.FIRST
    assert peer_device.attach(ioas).kind is ChangeKind.FIRST
    assert arrives(peer_edu, buffer)


def test_without_bus_mastering_nothing_moves(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping, arrives: Arrives
) -> None:
    device.attach(ioas)
    device.bus_master = False
    assert not device.bus_master
    buffer[:64] = b"\x7b" * 64
    edu.copy_out(IOVA, 64)
    assert buffer[:64] == b"\x7b" * 64
    device.bus_master = True
    assert arrives(edu, buffer)


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
    assert kinds == set(ChangeKind) - {ChangeKind.UNBLOCKED}
