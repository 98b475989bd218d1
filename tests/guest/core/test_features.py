"""What not every kernel and not every IOMMU has: it works, or is refused by the name of what is lacking."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Device,
    DeviceFeature,
    DMABuffer,
    HWCapability,
    HWInfoType,
    IoctlError,
    RegionFaultError,
    UnsupportedError,
    VIOMMUType,
)
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.provision.kernels import release_order
from tests.guest.dma import IOVA
from tests.patience import patience, until

SINCE: dict[str, tuple[int, int]] = {"IOMMU_IOAS_MAP_FILE": (6, 13), "IOMMU_IOAS_CHANGE_PROCESS": (6, 14)}
"""The first kernel with each ioctl, as in Linux' history of include/uapi/linux/iommufd.h."""


def test_ioctls_that_a_kernel_lacks_are_named(iommufd: IOMMUFD, ioas: IOAS) -> None:
    buffer = DMABuffer(4096, memfd=True)
    calls: dict[str, Callable[[], object]] = {
        "IOMMU_IOAS_MAP_FILE": lambda: ioas.map_file(buffer, 4096, iova=IOVA),
        "IOMMU_IOAS_CHANGE_PROCESS": iommufd.change_process,
    }
    for name, call in calls.items():
        if release_order(os.uname().release)[:2] >= SINCE[name]:
            call()
        else:
            with pytest.raises(UnsupportedError, match=name):
                call()
    assert bool(ioas.mappings) == (release_order(os.uname().release)[:2] >= SINCE["IOMMU_IOAS_MAP_FILE"])


def test_physical_addresses_are_for_machines_without_an_iommu(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.map(buffer, iova=IOVA)
    with pytest.raises(UnsupportedError, match="IOMMU_IOAS_NOIOMMU_GET_PA"):
        ioas.physical_address(IOVA)


def test_a_bar_is_mapped_and_revoked_or_no_dma_buf(device: Device, ioas: IOAS) -> None:
    """With any IOMMU: each driver maps registers in its own way."""
    if not device.feature(DeviceFeature.DMA_BUF).probe():
        with pytest.raises(UnsupportedError, match="DMA_BUF"):
            device.region(0).export_dma_buf()
        return
    device.attach(ioas)
    with device.region(0).export_dma_buf() as dma_buf:
        mapping = ioas.map_file(dma_buf, dma_buf.size, iova=IOVA)
        seen = [mapping.revoked]
        device.memory_decode = False
        assert [*seen, mapping.revoked] == [False, True]
        device.memory_decode = True
        mapping.unmap()
        assert not ioas.map_file(dma_buf, dma_buf.size, iova=IOVA).revoked


def test_low_power(device: Device) -> None:
    with device.region(0).map() as window, device.low_power.enter(wakeup=True) as woken:
        until(lambda: device.low_power.asleep, lambda: device.low_power)
        with pytest.raises(RegionFaultError):
            window.read32(0)
        device.region(0).read(0, 4)
        assert woken.wait(patience()) == 1
        assert window.read32(0) & 0xFF == 0xED
    device.low_power.exit()


def test_the_container_interfaces_address_space(iommufd: IOMMUFD, ioas: IOAS) -> None:
    assert iommufd.vfio_ioas is None
    iommufd.vfio_ioas = ioas
    assert iommufd.vfio_ioas is ioas


@pytest.mark.long
def test_hw_info_says_whose_iommu_it_is(device: Device, kind: str) -> None:
    info = device.hw_info()
    vendors = {
        "intel": {HWInfoType.INTEL_VTD},
        "intel-first-stage": {HWInfoType.INTEL_VTD},
        # Linux 6.18 is the first to say what an AMD IOMMU is; that of virtio says nothing.
        "amd": {HWInfoType.AMD if release_order(os.uname().release) >= (6, 18) else HWInfoType.NONE},
        "virtio": {HWInfoType.NONE},
        "smmuv3": {HWInfoType.ARM_SMMUV3},
        "smmuv3-nested": {HWInfoType.ARM_SMMUV3},
    }
    assert info.type in vendors[kind]
    assert (info.decoded is not None) == (info.type is not HWInfoType.NONE) == bool(info.data)
    assert info.pasid_width == 0


@pytest.mark.long
def test_pasids_of_devices_without_them_are_refused(device: Device, ioas: IOAS) -> None:
    with pytest.raises(UnsupportedError, match="PASID 9"):
        device.attach(ioas, pasid=9)
    assert device.page_tables == {}


def test_page_tables_that_the_iommu_lacks_are_named(device: Device, ioas: IOAS, kind: str) -> None:
    assert HWCapability.DIRTY_TRACKING not in device.hw_info().capabilities
    for option in ("dirty_tracking",) if kind.startswith("smmuv3") else ("dirty_tracking", "nest_parent"):
        with pytest.raises(UnsupportedError, match=option) as caught:
            device.alloc_hwpt(ioas, **{option: True})  # type: ignore[arg-type]
        assert caught.value.request == "IOMMU_HWPT_ALLOC"
    assert ioas.hwpts == ()


def test_virtual_iommus_that_the_iommu_lacks_are_named(device: Device, ioas: IOAS, kind: str) -> None:
    """An SMMUv3 has them where firmware or hardware keep DMA coherent: QEMU's own firmware does not say so."""
    parent = device.alloc_hwpt(ioas, nest_parent=kind.startswith("smmuv3"))
    if kind == "smmuv3-nested":
        assert device.alloc_viommu(parent, VIOMMUType.ARM_SMMUV3).parent is parent
        return
    # AMD's driver has some, of no type that it asks for, and refuses this parent.
    with pytest.raises(IoctlError, match="IOMMU_VIOMMU_ALLOC") as caught:
        device.alloc_viommu(parent, VIOMMUType.ARM_SMMUV3)
    assert parent.users == ()
    if kind == "smmuv3":
        assert caught.value.errno == errno.EOPNOTSUPP
        cause = str(caught.value.causes[0])
        assert all(word in cause for word in ("S2FWB", "CANWBS", "smmuv3-nested")), cause


@pytest.mark.long
def test_an_explicit_page_table_moves_data(device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer) -> None:
    device.attach(device.alloc_hwpt(ioas))
    ioas.map(buffer, iova=IOVA)
    buffer[:4] = b"HWPT"
    edu.copy_in(IOVA, 4)
    edu.copy_out(IOVA + 64, 4)
    assert buffer[64:68] == b"HWPT"
