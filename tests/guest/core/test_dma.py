"""Attach and detach of a device that is alone: the data shows where its DMA goes."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AlreadyAttachedError,
    ChangeKind,
    Device,
    DMABuffer,
    HostDevice,
    InUseError,
    IoctlError,
    Verdict,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives


@pytest.mark.long
def test_dma_is_blocked_moves_and_is_blocked_again(
    device: Device, edu: EduDriver, lone: HostDevice, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    ioas.map(buffer, iova=IOVA)
    assert not arrives(edu, buffer)
    change = device.attach(ioas)
    assert (change.kind, change.devices) == (ChangeKind.FIRST, (lone,))
    assert arrives(edu, buffer)
    change = device.detach()
    assert (change.kind, change.devices) == (ChangeKind.DETACH, (lone,))
    assert not arrives(edu, buffer)


@pytest.mark.long
def test_data_moves_both_ways_and_nowhere_else(device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer) -> None:
    device.attach(ioas)
    ioas.map(buffer, iova=IOVA)
    data = bytes(range(256)) * 4
    buffer[: len(data)] = data
    edu.copy_in(IOVA, len(data))
    edu.copy_out(IOVA + 8192, len(data))
    assert buffer[8192 : 8192 + len(data)] == data
    assert buffer[len(data) : 8192] == bytes(8192 - len(data))
    assert buffer[8192 + len(data) :] == bytes(len(buffer) - 8192 - len(data))


@pytest.mark.long
def test_unmapped_memory_is_out_of_reach(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    device.attach(ioas)
    mapping = ioas.map(buffer, iova=IOVA)
    assert arrives(edu, buffer)
    mapping.unmap()
    assert not arrives(edu, buffer)


@pytest.mark.long
def test_replace_moves_to_the_other_page_table(
    device: Device, edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    other, elsewhere = iommufd.alloc_ioas(), DMABuffer(len(buffer))
    ioas.map(buffer, iova=IOVA)
    other.map(elsewhere, iova=IOVA)
    device.attach(ioas)
    with pytest.raises(AlreadyAttachedError, match="replace"):
        device.attach(other)
    assert device.preview_attach(other).kind is ChangeKind.REPLACE
    assert device.replace(other).kind is ChangeKind.REPLACE
    assert not arrives(edu, buffer)
    assert arrives(edu, elsewhere)
    with pytest.raises(InUseError):
        other.close()
    device.detach()
    other.close()


@pytest.mark.long
def test_a_preview_refuses_a_reserved_address_as_attach_does(
    device: Device, lone: HostDevice, ioas: IOAS, kind: str
) -> None:
    """The interrupts' addresses, which every IOMMU of this architecture keeps."""
    group = lone.group
    assert group is not None
    (window,) = [region for region in group.reserved_regions if region.type == "msi"]
    ioas.map(DMABuffer(4096), iova=window.start)
    preview = device.preview_attach(ioas)
    assert (preview.verdict, preview.changes) == (Verdict.REFUSED, ())
    assert f"{window.start:#x}" in str(preview.reasons)
    with pytest.raises(IoctlError) as caught:
        device.attach(ioas)
    if kind != "intel-first-stage":  # where an older kernel refuses every attach, and not for this
        assert caught.value.errno == errno.EADDRINUSE
        assert f"{window.start:#x}" in str(caught.value)
    assert device.page_table is None


def test_a_preview_does_not_refuse_what_attach_accepts(
    device: Device, edu: EduDriver, lone: HostDevice, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    ioas.map(buffer, iova=IOVA)
    preview = device.preview_attach(ioas)
    assert not arrives(edu, buffer)
    change = device.attach(ioas)
    assert arrives(edu, buffer)
    assert preview.verdict is not Verdict.REFUSED, preview.reasons
    assert (preview.kind, preview.changes) == (change.kind, change.devices) == (ChangeKind.FIRST, (lone,))


def test_what_devices_cannot_reach_leaves_the_allowed_ranges(device: Device, lone: HostDevice, ioas: IOAS) -> None:
    group = lone.group
    assert group is not None
    (window,) = [region for region in group.reserved_regions if region.type == "msi"]
    assert any(window.start in range_ for range_ in ioas.iova_ranges())
    device.attach(ioas)
    assert not any(window.start in range_ or window.last in range_ for range_ in ioas.iova_ranges())
    device.detach()
    assert any(window.start in range_ for range_ in ioas.iova_ranges())
