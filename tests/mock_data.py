"""What the mock IOMMU's driver is given, in its layouts (Linux 7.3, drivers/iommu/iommufd/iommufd_test.h)."""

from __future__ import annotations

import struct

from pyiommufd import RawData
from pyiommufd.testing.mock import commands


def stage1(iotlb: int = commands.IOTLB_DEFAULT) -> RawData:
    """A stage-1 page table (struct iommu_hwpt_selftest): all its I/O TLB entries hold a value."""
    return RawData(commands.HWPT_DATA_TYPE, struct.pack("=I", iotlb))


def iotlb_entry(number: int, *, flags: int = 0) -> RawData:
    """Which entry of the I/O TLB to invalidate (struct iommu_hwpt_invalidate_selftest)."""
    return RawData(commands.HWPT_INVALIDATE_TYPE, struct.pack("=2I", flags, number))


def cache_entry(number: int, virtual_id: int, *, flags: int = 0) -> RawData:
    """Which entry of a device's cache to invalidate (struct iommu_viommu_invalidate_selftest)."""
    return RawData(commands.VIOMMU_INVALIDATE_TYPE, struct.pack("=3I", flags, virtual_id, number))
