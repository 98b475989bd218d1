"""Explicit page tables: on VT-d, and on the mock IOMMU for what VT-d under QEMU cannot do."""

from __future__ import annotations

import errno
import mmap
import re
import struct

import pytest

from pyiommufd import (
    HWPT,
    IOAS,
    IOMMUFD,
    AlreadyAttachedError,
    ChangeKind,
    ClosedError,
    Device,
    DMABuffer,
    GroupConflictError,
    InUseError,
    IoctlError,
    NotFoundError,
    UnsupportedError,
    Verdict,
    uapi,
)
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.guest.dma import IOVA, Arrives

MOCK_IOVA = commands.APERTURE_START
PAGE = mmap.PAGESIZE


# Attach and replace


def test_it_shows_what_is_mapped_into_its_address_space(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    hwpt = device.alloc_hwpt(ioas)
    assert (hwpt.ioas, hwpt.host, hwpt.flags, hwpt.closed) == (ioas, device.host, 0, False)
    change = device.attach(hwpt)
    assert (change.kind, device.page_table) == (ChangeKind.FIRST, hwpt)
    assert device.host.group is not None
    assert set(change.devices) == set(device.host.group.devices)
    assert not arrives(edu, buffer)
    mapping = ioas.map(buffer, iova=IOVA)
    assert arrives(edu, buffer)
    mapping.unmap()
    assert not arrives(edu, buffer)


def test_replace_by_a_page_table_of_the_same_address_space(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    ioas.map(buffer, iova=IOVA)
    hwpt = device.alloc_hwpt(ioas)
    device.attach(ioas)
    assert arrives(edu, buffer)
    with pytest.raises(AlreadyAttachedError, match="replace"):
        device.attach(hwpt)
    assert device.replace(hwpt).kind is ChangeKind.REPLACE
    assert arrives(edu, buffer)
    assert device.replace(hwpt).kind is ChangeKind.NOOP
    assert device.replace(ioas).kind is ChangeKind.REPLACE
    assert arrives(edu, buffer)
    hwpt.close()
    assert arrives(edu, buffer)


def test_it_and_its_address_space_are_two_page_tables_to_a_group(
    device: Device, peer_device: Device, peer_edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    ioas.map(buffer, iova=IOVA)
    hwpt = device.alloc_hwpt(ioas)
    device.attach(hwpt)
    assert peer_device.preview_attach(ioas).verdict is Verdict.REFUSED
    with pytest.raises(GroupConflictError, match=device.name) as caught:
        peer_device.attach(ioas)
    assert caught.value.peers == (device.host,)
    assert peer_device.preview_attach(hwpt).kind is ChangeKind.JOIN
    assert peer_device.attach(hwpt).kind is ChangeKind.JOIN
    assert arrives(peer_edu, buffer)
    # Each of them takes the other along.
    second = device.alloc_hwpt(ioas)
    device.replace(second)
    assert peer_device.page_table is second
    assert arrives(peer_edu, buffer)


def test_preview_of_one_that_was_made_for_another_device(device: Device, lone_device: Device, ioas: IOAS) -> None:
    hwpt = device.alloc_hwpt(ioas)
    own = device.preview_attach(hwpt)
    assert (own.verdict, own.kind) == (Verdict.ACCEPTED, ChangeKind.FIRST)
    other = lone_device.preview_attach(hwpt)
    assert other.verdict is Verdict.UNKNOWN
    assert device.name in other.reasons[0]
    assert lone_device.attach(hwpt).kind is ChangeKind.FIRST


def test_what_it_cannot_hold_is_named(device: Device, ioas: IOAS) -> None:
    fine = ioas.map(DMABuffer(PAGE), iova=IOVA)
    too_high = ioas.map(DMABuffer(PAGE), iova=1 << 60)
    with pytest.raises(IoctlError, match=f"{too_high.iova:#x}") as caught:
        device.alloc_hwpt(ioas)
    assert caught.value.errno == errno.EADDRINUSE
    assert f"{fine.iova:#x}.." not in str(caught.value)
    assert not ioas.hwpts
    too_high.unmap()
    hwpt = device.alloc_hwpt(ioas)
    assert list(ioas.hwpts) == [hwpt]


@pytest.mark.parametrize("option", ["dirty_tracking", "nest_parent"])
def test_what_the_emulated_vtd_lacks_is_named(device: Device, ioas: IOAS, option: str) -> None:
    with pytest.raises(UnsupportedError, match=option) as caught:
        device.alloc_hwpt(ioas, **{option: True})  # type: ignore[arg-type]
    assert caught.value.request == "IOMMU_HWPT_ALLOC"
    assert device.iommufd.objects == (device, ioas)


def test_wrong_arguments(device: Device, ioas: IOAS, mock_ioas: IOAS) -> None:
    with pytest.raises(TypeError, match="IOAS"):
        device.alloc_hwpt(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="IOAS"):
        device.alloc_hwpt(device.alloc_hwpt(ioas))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another IOMMUFD"):
        device.alloc_hwpt(mock_ioas)
    for data_type in (-1, 1 << 32):
        with pytest.raises(ValueError, match="32 bits"):
            device.alloc_hwpt(ioas, data_type=data_type)
    with pytest.raises(TypeError):
        device.alloc_hwpt(ioas, data="text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="HWPT"):
        device.attach(0)  # type: ignore[arg-type]


# Users and destruction


def test_who_uses_what(device: Device, ioas: IOAS) -> None:
    iommufd = device.iommufd
    first, second = device.alloc_hwpt(ioas), device.alloc_hwpt(ioas)
    device.attach(second)
    assert iommufd.objects == (device, second, first, ioas)
    assert (ioas.users, first.users, second.users) == ((first, second), (), (device,))
    assert ioas.hwpts == (first, second)
    device.replace(ioas)
    assert (ioas.users, second.users) == ((device, first, second), ())


def test_an_address_space_takes_its_page_tables_along(device: Device, ioas: IOAS) -> None:
    iommufd = device.iommufd
    hwpt = device.alloc_hwpt(ioas)
    device.attach(hwpt)
    owned: tuple[HWPT | IOAS, ...] = (hwpt, ioas)
    for one in owned:
        with pytest.raises(InUseError, match=device.name) as caught:
            one.close()
        assert caught.value.users == (device,)
    assert ioas.hwpts == (hwpt,)
    device.detach()
    ioas.close()
    assert hwpt.closed
    assert iommufd.objects == (device,)
    ioas.close()
    hwpt.close()
    with pytest.raises(ClosedError, match="closed"):
        device.attach(hwpt)


def test_the_kernel_has_destroyed_it(iommufd: IOMMUFD, device: Device, ioas: IOAS) -> None:
    with device.alloc_hwpt(ioas) as hwpt:
        number = hwpt.id
    # Ids are given out again at once.
    again = device.alloc_hwpt(ioas)
    assert again.id == number
    iommufd.close()
    assert again.closed


# Driver data and PASIDs, on the mock IOMMU


def test_data_of_the_driver_is_handed_on(huge_pages: None, mock_ioas: IOAS, mock_device: MockDevice) -> None:
    with pytest.raises(IoctlError):
        mock_device.alloc_hwpt(mock_ioas, data_type=1, data=bytes(8))
    assert mock_ioas.hwpts == ()
    huge = struct.pack("=II", 0, commands.PageTableType.HUGE)
    length = 2 * commands.HUGE_PAGE_SIZE
    mock_ioas.map(DMABuffer(length, huge_page_size=2 << 20), iova=MOCK_IOVA)
    mock_device.detach()
    hwpt = mock_device.alloc_hwpt(mock_ioas, dirty_tracking=True, data_type=commands.HWPT_DATA_TYPE, data=huge)
    mock_device.attach(hwpt)
    hwpt.set_dirty_tracking(True)
    # A mark is for all that an entry of the page table maps, and these are huge.
    mock_device.set_dirty(MOCK_IOVA, [0], count=length // PAGE)
    assert hwpt.dirty_bitmap(MOCK_IOVA, length).count() == commands.HUGE_PAGE_SIZE // PAGE


def test_pasids_take_page_tables_that_allow_it(mock_ioas: IOAS, mock_device: MockDevice) -> None:
    plain = mock_device.alloc_hwpt(mock_ioas)
    able = mock_device.alloc_hwpt(mock_ioas, pasid=True)
    assert able.flags == uapi.IOMMU_HWPT_ALLOC_PASID
    with pytest.raises(IoctlError):
        mock_device.attach(plain, pasid=7)
    mock_device.replace(able)
    mock_device.attach(able, pasid=7)
    assert mock_device.on(able.id, pasid=7)
    assert mock_device.page_tables == {None: able, 7: able}
    other = mock_device.alloc_hwpt(mock_ioas, pasid=True)
    assert mock_device.replace(other, pasid=7).kind is ChangeKind.REPLACE
    assert mock_device.on(other.id, pasid=7)
    assert mock_device.on(able.id)
    with pytest.raises(InUseError):
        other.close()
    mock_device.detach(pasid=7)
    assert mock_device.on(None, pasid=7)
    other.close()


def test_attached_with_pasids_everything_is_made_for_them(mock_ioas: IOAS, mock_device: MockDevice) -> None:
    ioas, device = mock_ioas, mock_device
    plain, for_pasids = device.alloc_hwpt(ioas), device.alloc_hwpt(ioas, pasid=True)
    for page_table, in_the_way in ((ioas, ioas), (plain, plain), (for_pasids, ioas)):
        preview = device.preview_attach(page_table, pasid=5)
        assert (preview.verdict, preview.reasons) == (Verdict.REFUSED, (f"{in_the_way!r} was made without pasid=True",))
        with pytest.raises(IoctlError, match=re.escape(f"({in_the_way!r} was made without")) as caught:
            device.attach(page_table, pasid=5)
        assert caught.value.errno == errno.EINVAL
    device.replace(for_pasids)
    assert device.preview_attach(for_pasids, pasid=5).verdict is Verdict.ACCEPTED
    device.attach(for_pasids, pasid=5)
    for page_table in (ioas, plain):
        assert device.preview_attach(page_table).verdict is Verdict.REFUSED
        with pytest.raises(IoctlError, match="was made without pasid=True"):
            device.replace(page_table)
    assert device.on(device.hwpt_id())
    device.detach(pasid=5)
    assert device.preview_attach(plain).verdict is Verdict.ACCEPTED
    device.replace(plain)


def test_pasids_of_a_device_that_has_none(mock: MockIOMMUFD, mock_ioas: IOAS, device: Device, ioas: IOAS) -> None:
    for one, page_table in ((mock.mock_device(mock_ioas), mock_ioas), (device, ioas)):
        assert one.hw_info().pasid_width == 0
        with pytest.raises(UnsupportedError, match="PASID 5") as caught:
            one.attach(page_table, pasid=5)
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(UnsupportedError):
            one.preview_attach(page_table, pasid=5)
        assert 5 not in one.page_tables


def test_pasids_that_are_too_wide(mock_ioas: IOAS, mock_device: MockDevice) -> None:
    assert mock_device.hw_info().pasid_width == commands.PASID_WIDTH
    for pasid in (0, -1, 1 << 20):
        with pytest.raises(ValueError, match="PASID"):
            mock_device.attach(mock_ioas, pasid=pasid)


def test_a_replace_that_fails_keeps_the_old_page_table(mock_ioas: IOAS, mock_device: MockDevice) -> None:
    able = mock_device.alloc_hwpt(mock_ioas, pasid=True)
    other = mock_device.alloc_hwpt(mock_ioas, pasid=True)
    pasid = commands.PASID_THAT_FAILS
    mock_device.replace(able)
    mock_device.attach(able, pasid=pasid)
    with pytest.raises(IoctlError) as caught:
        mock_device.replace(other, pasid=pasid)
    assert caught.value.errno == errno.ENOMEM
    assert mock_device.page_table_for(pasid) is able
    assert mock_device.on(able.id, pasid=pasid)
    mock_device.replace(other, pasid=pasid)
    assert mock_device.on(other.id, pasid=pasid)


def test_ids_of_other_objects_are_not_found(mock: MockIOMMUFD, mock_ioas: IOAS, mock_device: MockDevice) -> None:
    hwpt = mock_device.alloc_hwpt(mock_ioas)
    number, hwpt._c.id = hwpt.id, mock_ioas.id
    with pytest.raises(NotFoundError):
        hwpt.set_dirty_tracking(True)
    hwpt._c.id = number
