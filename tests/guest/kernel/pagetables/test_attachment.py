"""Attach, replace and detach on a group that two devices share: whose DMA goes where, shown by the data."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AlreadyAttachedError,
    ChangeKind,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    GroupConflictError,
    HostDevice,
    Verdict,
)
from pyiommufd.testing.drivers.edu import EduDriver

IOVA = 0x100000

Arrives = Callable[[EduDriver, DMABuffer], bool]


@pytest.fixture
def members(first: HostDevice) -> set[str]:
    group = first.group
    assert group is not None
    return {member.name for member in group.devices}


def names(devices: tuple[HostDevice, ...]) -> set[str]:
    return {device.name for device in devices}


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


def test_first_bind_blocks_every_member_and_the_second_changes_nothing(
    device: Device, peer_device: Device, members: set[str]
) -> None:
    assert device.bind_change.kind is ChangeKind.FIRST
    assert names(device.bind_change.devices) == members
    assert peer_device.bind_change.kind is ChangeKind.NOOP
    assert peer_device.bind_change.devices == ()


def test_bound_peer_shares_the_table_without_an_attach_of_its_own(
    device: Device, peer_edu: EduDriver, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping, arrives: Arrives
) -> None:
    assert not arrives(peer_edu, buffer)
    device.attach(ioas)
    assert peer_edu.device.page_table is None
    assert arrives(peer_edu, buffer)
    device.detach()
    assert not arrives(peer_edu, buffer)


def test_dma_goes_on_until_the_last_of_the_group_detaches(
    device: Device,
    peer_device: Device,
    edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    members: set[str],
) -> None:
    device.attach(ioas)
    joined = peer_device.attach(ioas)
    assert (joined.kind, joined.devices) == (ChangeKind.JOIN, ())
    left = device.detach()
    assert (left.kind, left.devices) == (ChangeKind.DETACH, ())
    assert device.page_table is None
    assert arrives(edu, buffer)
    assert names(peer_device.detach().devices) == members
    assert not arrives(edu, buffer)


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


def test_attach_of_an_attached_device_is_refused_and_names_replace(
    device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    other = iommufd.alloc_ioas()
    for page_table in (ioas, other):
        with pytest.raises(AlreadyAttachedError, match=r"replace\(\)"):
            device.attach(page_table)
    assert device.page_table is ioas
    assert arrives(edu, buffer)


def test_replace_takes_the_attached_peer_along(
    device: Device,
    peer_device: Device,
    peer_edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    members: set[str],
) -> None:
    device.attach(ioas)
    peer_device.attach(ioas)
    other, elsewhere = iommufd.alloc_ioas(), DMABuffer(4096)
    other.map(elsewhere, iova=IOVA)
    preview = device.preview_attach(other)
    assert (preview.verdict, preview.kind) == (Verdict.ACCEPTED, ChangeKind.REPLACE)
    change = device.replace(other)
    assert change.kind is ChangeKind.REPLACE
    assert names(change.devices) == names(preview.changes) == members
    # The same address, from the peer, that nobody named: it is other memory now.
    buffer[:64] = b"\x7a" * 64
    assert arrives(peer_edu, elsewhere)
    assert buffer[:64] == b"\x7a" * 64
    assert device.page_table is other
    assert peer_device.page_table is other
    # Nothing is on the first one any more, in the kernel's eyes too: it can be destroyed.
    ioas.close()


def test_replace_by_the_same_table_changes_nothing(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    assert device.preview_attach(ioas).kind is ChangeKind.NOOP
    change = device.replace(ioas)
    assert (change.kind, change.devices) == (ChangeKind.NOOP, ())


def test_replace_wants_an_attached_device(device: Device, ioas: IOAS) -> None:
    with pytest.raises(ValueError, match="attach"):
        device.replace(ioas)
    assert device.page_table is None


def test_refused_replace_keeps_the_old_table(
    device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    other = iommufd.alloc_ioas()
    # The window that interrupts are written to: accepted while nothing is attached, refused by the attach.
    other.map(DMABuffer(4096), iova=0xFEE0_0000)
    preview = device.preview_attach(other)
    assert preview.verdict is Verdict.REFUSED
    assert "0xfee00000" in preview.reasons[0]
    with pytest.raises(OSError, match="VFIO_DEVICE_ATTACH_IOMMUFD_PT") as caught:
        device.replace(other)
    assert caught.value.errno == errno.EADDRINUSE
    assert "0xfee00000" in str(caught.value)
    assert device.page_table is ioas
    assert arrives(edu, buffer)


def test_second_address_space_is_refused_and_the_peer_is_named(
    device: Device, peer_device: Device, iommufd: IOMMUFD, ioas: IOAS
) -> None:
    device.attach(ioas)
    other = iommufd.alloc_ioas()
    preview = peer_device.preview_attach(other)
    assert (preview.verdict, preview.kind, preview.changes) == (Verdict.REFUSED, ChangeKind.JOIN, ())
    assert device.name in preview.reasons[0]
    with pytest.raises(GroupConflictError) as caught:
        peer_device.attach(other)
    assert caught.value.errno == errno.EINVAL
    assert [found.name for found in caught.value.peers] == [device.name]
    assert device.name in str(caught.value)
    assert repr(ioas) in str(caught.value)
    # What it says the way out is, is one.
    peer_device.attach(ioas)
    assert peer_device.page_table is ioas


def test_preview_of_the_first_and_of_a_joining_attach(
    device: Device, peer_device: Device, ioas: IOAS, members: set[str]
) -> None:
    preview = device.preview_attach(ioas)
    assert (preview.verdict, preview.kind) == (Verdict.ACCEPTED, ChangeKind.FIRST)
    assert names(preview.changes) == members
    assert device.page_table is None
    change = device.attach(ioas)
    assert (change.kind, change.devices) == (preview.kind, preview.changes)
    preview = peer_device.preview_attach(ioas)
    assert (preview.verdict, preview.kind, preview.changes) == (Verdict.ACCEPTED, ChangeKind.JOIN, ())
    assert peer_device.attach(ioas).kind is ChangeKind.JOIN


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


def test_unbind_of_the_attached_device_blocks_the_peer(
    device: Device,
    peer_device: Device,
    peer_edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    assert arrives(peer_edu, buffer)
    device.close()
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


def test_page_table_of_another_iommufd_is_refused(claimed: Claim, device: Device) -> None:
    with IOMMUFD() as other, pytest.raises(ValueError, match="another IOMMUFD"):
        device.attach(other.alloc_ioas())
    assert device.page_table is None


def test_what_is_no_page_table_is_refused(device: Device) -> None:
    with pytest.raises(TypeError, match="IOAS"):
        device.attach(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("pasid", [-1, 0, 1 << 20])
def test_pasid_out_of_range_is_refused(device: Device, ioas: IOAS, pasid: int) -> None:
    with pytest.raises(ValueError, match="PASID"):
        device.attach(ioas, pasid)


def test_memory_that_cannot_be_pinned_is_refused_by_the_attach(
    device: Device, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping
) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), len(buffer), 0) == 0
    with pytest.raises(OSError, match="pinned") as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EFAULT
    assert device.page_table is None
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), len(buffer), 3) == 0
    device.attach(ioas)
