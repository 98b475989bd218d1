"""A machine whose IOMMU is off or missing: what cannot be done is refused, and said why; what vfio does there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import (
    IOMMUFD,
    ChangeKind,
    Claim,
    ClaimRefusedError,
    Device,
    DeviceFile,
    DMABuffer,
    DMAChange,
    HostDevice,
    NotFoundError,
    UnsupportedError,
    Verdict,
    find_device,
    find_group,
    list_groups,
    plan_claim,
)
from pyiommufd.host.checks.readiness import readiness
from pyiommufd.host.holders import holders
from pyiommufd.testing.drivers.edu import EduDriver

MODE = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
NOTHING = DMAChange(ChangeKind.UNBLOCKED, ())
SIZE = 16 << 10


@pytest.fixture
def uncovered(all_edus: tuple[HostDevice, ...]) -> HostDevice:
    if all_edus[0].group_id is not None:
        pytest.skip("an IOMMU covers the devices here")
    return all_edus[0]


@pytest.fixture
def unsafe(uncovered: HostDevice) -> Iterator[None]:
    """Have vfio take devices without an IOMMU."""
    before = MODE.read_text()
    MODE.write_text("Y")
    yield
    MODE.write_text(before)


@pytest.fixture
def claim(unsafe: None, uncovered: HostDevice) -> Iterator[Claim]:
    with plan_claim(uncovered, force=["noiommu"]).apply() as claim:
        yield claim


def test_a_claim_is_refused_for_want_of_an_iommu(uncovered: HostDevice) -> None:
    (refusal,) = plan_claim(uncovered).refusals
    assert (refusal.device, refusal.kind) == (uncovered.name, "noiommu")
    with pytest.raises(ClaimRefusedError, match="IOMMU") as caught:
        plan_claim(uncovered).apply()
    assert uncovered.name in str(caught.value)
    assert "intel_iommu=on" in str(caught.value)
    assert uncovered.refreshed().driver is None


def test_there_is_no_group_and_nothing_to_bind(uncovered: HostDevice, iommufd: IOMMUFD) -> None:
    assert list_groups() == []
    assert uncovered.group is None
    assert uncovered.without_iommu
    with pytest.raises(NotFoundError) as caught:
        iommufd.bind(uncovered)
    assert uncovered.name in str(caught.value)
    assert iommufd.devices == ()


def test_the_group_that_vfio_makes_is_no_sign_of_an_iommu(claim: Claim, uncovered: HostDevice) -> None:
    device = uncovered.refreshed()
    assert device.without_iommu
    assert device.group_id is not None
    assert find_group(device.group_id).is_made_by_vfio
    # A second claim, say after a process has ended, is no safer for its being on vfio.
    assert "noiommu" in {refusal.kind for refusal in plan_claim(device).refusals}
    found = [
        (one.check, str(one.state)) for one in readiness() if uncovered.name in one.devices or one.check == "iommu"
    ]
    assert ("iommu", "missing") in found
    assert ("iommu", "warning") in found
    claim.release()
    assert uncovered.refreshed().group_id is None
    assert list_groups() == []


def test_a_kernel_without_nodes_for_such_devices_is_named(
    claim: Claim, uncovered: HostDevice, iommufd: IOMMUFD
) -> None:
    """Before 7.3 there are none: VFIO's groups are all there is."""
    device = uncovered.refreshed()
    if device.vfio_cdev is None:
        with pytest.raises(NotFoundError, match="devices without an IOMMU no nodes") as caught:
            iommufd.bind(device)
        assert f"/dev/vfio/noiommu-{device.group_id}" in str(caught.value)
        assert Path(f"/dev/vfio/noiommu-{device.group_id}").is_char_device()
        return
    name = Path(device.vfio_cdev).name
    assert name.startswith("noiommu-vfio")
    assert find_device(name) == find_device(device.vfio_cdev) == uncovered
    with DeviceFile(device) as file:
        (holder,) = holders(device)
        assert (holder.node, holder.own_fd) == (device.vfio_cdev, file.fileno())
    assert holders(device) == ()
    with DeviceFile.from_fd(os.open(device.vfio_cdev, os.O_RDWR)) as file:
        assert (file.device, file.device.without_iommu) == (uncovered, True)


@pytest.fixture
def device(claim: Claim, uncovered: HostDevice, iommufd: IOMMUFD) -> Iterator[Device]:
    device = iommufd.bind(uncovered)
    device.bus_master = True
    yield device
    device.close()


def test_dma_by_physical_address_is_never_blocked(device: Device, iommufd: IOMMUFD) -> None:
    """Data arrives while the memory is mapped, after the detach, and after the unmap: every change says so."""
    changes = [device.bind_change]
    ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    preview = device.preview_attach(ioas)
    assert (preview.verdict, preview.kind, preview.changes) == (Verdict.ACCEPTED, ChangeKind.UNBLOCKED, ())
    assert "nothing is blocked" in preview.reasons[-1]
    assert "unblocked: nothing is blocked" in repr(preview)
    buffer = DMABuffer(SIZE)
    with EduDriver(device) as edu:
        buffer[:8] = b"original"
        changes.append(device.attach(ioas))
        mapping = ioas.map(buffer, iova=0x100000)
        address = ioas.physical_address(mapping.iova).address
        assert device.page_table is ioas
        edu.copy_in(address, 8)
        edu.copy_out(address + 64, 8)
        assert buffer[64:72] == b"original"
        changes.append(device.replace(other))
        assert device.page_table is other
        edu.copy_out(address + 128, 8)
        changes += [device.detach(), device.detach()]
        edu.copy_out(address + 192, 8)
        mapping.unmap()
        edu.copy_out(address + 256, 8)
        assert [bytes(buffer[at : at + 8]) for at in (128, 192, 256)] == [b"original"] * 3
    assert changes == [NOTHING] * 5
    assert all("nothing is blocked" in repr(change) for change in changes)
    with pytest.raises(UnsupportedError, match="no IOMMU covers the device"):
        device.hw_info()
    for attach in (device.attach, device.preview_attach):
        with pytest.raises(UnsupportedError, match="PASID"):
            attach(ioas, 5)
    # No device is attached that would say where the memory is.
    with pytest.raises(UnsupportedError, match="attach devices without an IOMMU, and no others"):
        ioas.physical_address(ioas.map(buffer).iova)


def test_every_preview_says_that_nothing_is_blocked(device: Device, iommufd: IOMMUFD) -> None:
    """Also of a device that this process has bound and adopted: the two objects are no peers of each other."""
    ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    assert device.attach(ioas) == NOTHING
    previews = [device.preview_attach(other)]
    with IOMMUFD.from_fd(os.dup(iommufd.fileno())) as adopting:
        adopted = Device.from_fd(os.dup(device.fileno()), adopting)
        previews += [one.preview_attach(adopting.alloc_ioas()) for one in (adopted, device)]
    assert {preview.kind for preview in previews} == {ChangeKind.UNBLOCKED}
    assert all("nothing is blocked" in preview.reasons[-1] for preview in previews)
    assert not any("of the same group" in reason for preview in previews for reason in preview.reasons)


def test_two_devices_without_an_iommu_are_no_group(
    unsafe: None, all_edus: tuple[HostDevice, ...], iommufd: IOMMUFD
) -> None:
    """Each has a group of its own, and a page table of its own choice."""
    pair = all_edus[:2]
    with plan_claim(pair, force=["noiommu"]).apply():
        devices = [iommufd.bind(one) for one in pair]
        assert len({device.host.group_id for device in devices}) == 2
        spaces = [iommufd.alloc_ioas() for _ in devices]
        assert [device.attach(space) for device, space in zip(devices, spaces, strict=True)] == [NOTHING] * 2
        assert [device.page_table for device in devices] == spaces
        assert devices[1].preview_attach(spaces[0]).verdict is Verdict.ACCEPTED
        assert devices[1].replace(spaces[0]) == NOTHING
        for device in devices:
            device.close()
    assert [one.refreshed().group_id for one in pair] == [None, None]
