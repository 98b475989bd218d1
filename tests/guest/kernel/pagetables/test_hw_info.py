"""What the kernel says of the IOMMU before a device."""

from __future__ import annotations

import pytest

from pyiommufd import ClosedError, Device, HWCapability, HWInfoType, IoctlError
from pyiommufd.kernel.pagetables.hw_info import IntelVTd
from pyiommufd.testing.mock import MockIOMMUFD, commands


def test_vtd_says_its_registers(device: Device) -> None:
    info = device.hw_info()
    assert info.type is HWInfoType.INTEL_VTD
    assert isinstance(info.decoded, IntelVTd)
    # The guest's own driver shows the registers, too.
    iommu = device.host.iommu
    assert iommu is not None
    registers = {}
    for name in ("cap", "ecap"):
        with open(f"/sys/class/iommu/{iommu}/intel-iommu/{name}") as file:
            registers[name] = int(file.read(), 16)
    assert (info.decoded.capabilities, info.decoded.extended_capabilities) == (registers["cap"], registers["ecap"])
    assert 48 in info.decoded.address_widths
    assert not info.decoded.nesting
    assert len(info.data) == 24
    assert HWCapability.DIRTY_TRACKING not in info.capabilities
    assert info.pasid_width == 0


def test_mock_says_what_it_is() -> None:
    with MockIOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        able = iommufd.mock_device(ioas, pasid=True).hw_info()
        assert able.type == commands.HW_INFO_TYPE
        assert able.decoded is None
        assert commands.HW_INFO_REGISTER.to_bytes(4, "little") in able.data
        assert able.pasid_width == commands.PASID_WIDTH
        assert HWCapability.DIRTY_TRACKING in able.capabilities
        plain = iommufd.mock_device(ioas, dirty_tracking=False).hw_info()
        assert plain.pasid_width == 0
        assert HWCapability.DIRTY_TRACKING not in plain.capabilities


def test_data_of_another_type(device: Device) -> None:
    assert device.hw_info(HWInfoType.INTEL_VTD) == device.hw_info()
    with pytest.raises(IoctlError, match=device.name):
        device.hw_info(HWInfoType.TEGRA241_CMDQV)
    for wrong in (-1, 1 << 32):
        with pytest.raises(ValueError, match="32 bits"):
            device.hw_info(wrong)


def test_after_the_close(device: Device) -> None:
    device.close()
    with pytest.raises(ClosedError):
        device.hw_info()
