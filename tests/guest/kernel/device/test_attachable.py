"""What attach and replace refuse, what is as it was then, and what a preview says of it before."""

from __future__ import annotations

import ctypes
import errno

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
    IoctlError,
    Verdict,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import Arrives
from tests.guest.kernel.members import names


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


def test_replace_by_the_same_table_changes_nothing(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    assert device.preview_attach(ioas).kind is ChangeKind.NOOP
    change = device.replace(ioas)
    assert (change.kind, change.devices) == (ChangeKind.NOOP, ())


def test_replace_wants_an_attached_device(device: Device, ioas: IOAS) -> None:
    with pytest.raises(ValueError, match="attach"):
        device.replace(ioas)
    assert device.page_table is None


def test_a_refused_replace_keeps_the_old_table_for_every_device(
    device: Device,
    peer: HostDevice,
    neighbour: HostDevice,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    other = iommufd.alloc_ioas()
    # The window that interrupts are written to: accepted while nothing is attached, refused by the attach.
    other.map(DMABuffer(4096), iova=0xFEE0_0000)
    attached: list[Device] = []
    for host in (None, peer, neighbour):  # first alone, then beside others that are bound and attached
        joining = device if host is None else iommufd.bind(host)
        joining.attach(ioas)
        attached.append(joining)
        for one in attached:
            preview = one.preview_attach(other)
            assert preview.verdict is Verdict.REFUSED
            assert "0xfee00000" in preview.reasons[0]
            with pytest.raises(IoctlError, match="VFIO_DEVICE_ATTACH_IOMMUFD_PT") as caught:
                one.replace(other)
            assert caught.value.errno == errno.EADDRINUSE
            assert "0xfee00000" in str(caught.value)
        assert [one.page_table for one in attached] == [ioas] * len(attached)
        assert arrives(edu, buffer)
    attached[1].bus_master = True
    with EduDriver(attached[1]) as peer_edu:
        assert arrives(peer_edu, buffer)
    other.close()


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
    assert peer_device.attach(ioas).kind is ChangeKind.JOIN
    assert peer_device.page_table is ioas


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
