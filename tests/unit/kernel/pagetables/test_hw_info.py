"""What IOMMU_GET_HW_INFO answers for each vendor, from bytes as their drivers write them."""

from __future__ import annotations

import struct

import pytest

from pyiommufd._uapi import ffi
from pyiommufd.kernel.pagetables.hw_info import (
    AMD,
    ArmSMMUv3,
    HWCapability,
    HWInfoType,
    IntelVTd,
    Tegra241CMDQV,
    hw_info,
)


@pytest.mark.parametrize(
    ("kind", "name", "members", "decoded"),
    [
        (
            HWInfoType.INTEL_VTD,
            "iommu_hw_info_vtd",
            {"flags": 1, "cap_reg": 1 << 10, "ecap_reg": 1 << 26},
            IntelVTd(1, 1 << 10, 1 << 26),
        ),
        (
            HWInfoType.ARM_SMMUV3,
            "iommu_hw_info_arm_smmuv3",
            {"flags": 1, "idr": [1, 2, 3, 4, 5, 6], "iidr": 7, "aidr": 8},
            ArmSMMUv3(1, (1, 2, 3, 4, 5, 6), 7, 8),
        ),
        (
            HWInfoType.TEGRA241_CMDQV,
            "iommu_hw_info_tegra241_cmdqv",
            {"flags": 0, "version": 2, "log2vcmdqs": 3, "log2vsids": 4},
            Tegra241CMDQV(0, 2, 3, 4),
        ),
        (HWInfoType.AMD, "iommu_hw_info_amd", {"efr": 1 << 63, "efr2": 5}, AMD(1 << 63, 5)),
    ],
)
def test_vendors(kind: HWInfoType, name: str, members: dict[str, object], decoded: object) -> None:
    data = bytes(ffi.buffer(ffi.new(f"struct {name} *", members)))
    info = hw_info(kind, 20, 3, data)
    assert (info.type, info.decoded, info.data, info.pasid_width) == (kind, decoded, data, 20)
    assert info.capabilities == HWCapability.DIRTY_TRACKING | HWCapability.PCI_PASID_EXEC
    # A newer kernel may know more than this library; less than this is not that struct.
    assert hw_info(kind, 0, 0, data + b"more").decoded == decoded
    assert hw_info(kind, 0, 0, data[:-1]).decoded is None


def test_vtd_registers() -> None:
    vtd = IntelVTd(0, 1 << 9 | 1 << 10, 0)
    assert (vtd.address_widths, vtd.nesting) == ((39, 48), False)


def test_vendors_and_capabilities_to_come() -> None:
    info = hw_info(77, 0, 1 << 40 | 1, struct.pack("=I", 5))
    assert (info.type, type(info.type), info.decoded) == (77, int, None)
    assert info.capabilities.value == 1 << 40 | 1
    assert hw_info(0, 0, 0, b"").type is HWInfoType.NONE
