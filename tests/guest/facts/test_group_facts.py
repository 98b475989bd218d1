"""What the kernel does to a whole IOMMU group when one of its devices is bound, attached, replaced or detached.

A test a sentence, on the kernel that runs: what the attachment model builds on. The group has two edu devices, whose
DMA is seen in memory, a third device, and a bridge. Whether data arrives is the proof throughout.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    GroupConflictError,
    GroupNotViableError,
    HostDevice,
    IoctlError,
    Verdict,
    find_group,
)
from pyiommufd.host import drivers, sysfs
from pyiommufd.testing.edu import EduDriver
from pyiommufd.uapi import ioctls

IOVA = 0x100000

Arrives = Callable[[EduDriver, DMABuffer], bool]


class _Registers:
    """BAR 0 of a device that nobody has bound, by its file in sysfs; as much of a `Window` as `EduDriver` uses."""

    def __init__(self, host: HostDevice) -> None:
        fd = os.open(host.sys_path / "resource0", os.O_RDWR)
        try:
            self._memory = mmap.mmap(fd, 4096)
        finally:
            os.close(fd)

    def read32(self, offset: int) -> int:
        return ctypes.c_uint32.from_buffer(self._memory, offset).value

    def read64(self, offset: int) -> int:
        return ctypes.c_uint64.from_buffer(self._memory, offset).value

    def write64(self, offset: int, value: int) -> None:
        ctypes.c_uint64.from_buffer(self._memory, offset).value = value

    def close(self) -> None:
        self._memory.close()


class _UnboundDevice:
    """As much of a `Device` as `EduDriver` uses, for a device that is bound to no iommufd."""

    bus_master = True

    def __init__(self, host: HostDevice) -> None:
        self.name = host.name
        self._host = host

    def region(self, index: int) -> _UnboundDevice:
        assert index == 0
        return self

    def map(self) -> _Registers:
        return _Registers(self._host)


@contextmanager
def unbound_edu(host: HostDevice) -> Iterator[EduDriver]:
    """Drive an edu device that is not bound; memory decode and bus mastering on by its configuration space."""
    with open(host.sys_path / "config", "r+b", buffering=0) as config:
        config.seek(4)
        before = config.read(2)
        config.seek(4)
        config.write(bytes([before[0] | 0x06, before[1]]))
        config.seek(4)
        assert config.read(1)[0] & 0x06 == 0x06
        with EduDriver(cast("Device", _UnboundDevice(host))) as driver:
            yield driver
        config.seek(4)
        config.write(before)


@contextmanager
def on_driver(host: HostDevice, driver: str | None) -> Iterator[None]:
    """A claimed device on another driver than vfio-pci, and back on it."""
    drivers.unbind(host)
    if driver is not None:
        drivers.set_driver_override(host, driver)
        drivers.bind(host, driver)
    try:
        yield
    finally:
        drivers.unbind(host)
        drivers.set_driver_override(host, "vfio-pci")
        drivers.bind(host, "vfio-pci")


def names(devices: tuple[HostDevice, ...]) -> set[str]:
    return {device.name for device in devices}


@pytest.fixture
def members(claimed: Claim, first: HostDevice) -> set[str]:
    group = first.group
    assert group is not None
    return names(group.devices)


@pytest.fixture
def third_device(
    claimed: Claim, iommufd: IOMMUFD, device: Device, peer_device: Device, neighbour: HostDevice
) -> Device:
    """The third device of the group, bound after the two edu devices."""
    return iommufd.bind(neighbour)


# A group has one page table


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


# Bind


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


# Attach


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


# Replace


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
    change = peer_device.replace(other)
    assert change.kind is ChangeKind.REPLACE
    assert names(change.devices) == members
    kept = buffer[:64]
    assert arrives(edu, elsewhere)
    assert arrives(peer_edu, elsewhere)
    assert buffer[:64] == kept
    assert [one.page_table for one in attached] == [other] * 3
    # The kernel has none of the three on the old table: it lets it go, and not the new one.
    ioas.close()
    with pytest.raises(IoctlError) as caught:
        ioctls.destroy(iommufd.fileno(), other.id)
    assert caught.value.errno == errno.EBUSY


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


def test_a_replace_has_no_gap(
    device: Device, peer_device: Device, peer_edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer
) -> None:
    """The same memory at the same address in both tables: a transfer during any number of replaces arrives."""
    ioas.map(buffer, iova=IOVA)
    other = iommufd.alloc_ioas()
    other.copy_from(ioas, IOVA, len(buffer), dst_iova=IOVA)
    device.attach(ioas)
    peer_device.attach(ioas)
    data = bytes(range(1, 256)) * 8
    buffer[: len(data)] = data
    stop = False

    def swap() -> None:
        turns = 0
        while not stop:
            device.replace((other, ioas)[turns % 2])
            turns += 1
        swaps.append(turns)

    swaps: list[int] = []
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for turn in range(5):
            target = 2048 + 2048 * (turn % 2)
            buffer[target : target + len(data)] = bytes(len(data))
            peer_edu.copy_in(IOVA, len(data))
            peer_edu.copy_out(IOVA + target, len(data))
            assert buffer[target : target + len(data)] == data
    finally:
        stop = True
        thread.join()
    assert swaps[0] > 1  # how many, is up to the machine


def test_a_refused_replace_keeps_the_old_table_for_every_device(
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
) -> None:
    attached = (device, peer_device, third_device)
    for one in attached:
        one.attach(ioas)
    other = iommufd.alloc_ioas()
    other.map(DMABuffer(4096), iova=0xFEE0_0000)
    for one in attached:
        with pytest.raises(IoctlError, match="0xfee00000") as caught:
            one.replace(other)
        assert caught.value.errno == errno.EADDRINUSE
    assert [one.page_table for one in attached] == [ioas] * 3
    assert arrives(edu, buffer)
    assert arrives(peer_edu, buffer)
    other.close()


# Detach and unbind


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
        assert arrives(edu, buffer)
        assert arrives(peer_edu, buffer)
    change = third_device.detach()
    assert change.kind is ChangeKind.DETACH
    assert names(change.devices) == members
    assert not arrives(edu, buffer)
    assert not arrives(peer_edu, buffer)


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


def test_host_drivers_fail_to_probe_until_the_last_bound_device_closes(
    device: Device, peer_device: Device, neighbour: HostDevice, claimed: Claim
) -> None:
    drivers.unbind(neighbour)
    drivers.set_driver_override(neighbour, None)

    def refused(path: Path) -> int:
        with pytest.raises(OSError, match=str(path)) as caught:
            sysfs.write(path, neighbour.name)
        return caught.value.errno or 0

    bus = sysfs.SYS / "bus/pci"
    try:
        for bound in (device, peer_device):
            assert refused(bus / "drivers/virtio-pci/bind") == errno.EBUSY
            assert refused(bus / "drivers_probe") == errno.EINVAL
            bound.close()
        sysfs.write(bus / "drivers_probe", neighbour.name)
        assert drivers.driver_of(neighbour) == "virtio-pci"
    finally:
        drivers.unbind(neighbour)
        drivers.set_driver_override(neighbour, "vfio-pci")
        drivers.bind(neighbour, "vfio-pci")


# Which members a group may have while one of it is bound


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


# What the model says is what the kernel does, whatever the order


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
