"""The lines of DMA faults of each IOMMU and of older kernels, which one guest does not show all."""

from __future__ import annotations

import re

import pytest

from pyiommufd.testing.checks.dma_faults import LOG_PATTERN, Access, parse_fault
from pyiommufd.testing.checks.dmesg import LogLine


def line(text: str, facility: int = 0) -> LogLine:
    return LogLine(3, facility, 1, 0.0, text)


NEW = "DMAR: [DMA Write NO_PASID] Request device [0000:02:00.0] fault addr 0x200000 [fault reason 0x05] PTE Write"
WITH_PASID = "DMAR: [DMA Read PASID 0x1f] Request device [0001:3a:1f.7] fault addr 0xfffff000 [fault reason 0x71] SM: x"
OLDER = "DMAR: [DMA Write NO_PASID] Request device [02:00.0] fault addr 0x200000 [fault reason 0x05] PTE Write"
OLDEST = "DMAR: [DMA Read] Request device [02:00.0] PASID ffffffff fault addr 1000 [fault reason 06] PTE Read"
OLDEST_PASID = "DMAR: [DMA Read] Request device [02:00.0] PASID 5 fault addr 1000 [fault reason 06] PTE Read"
AMD = "vfio-pci 0000:00:03.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000c address=0x200000 flags=0x0020]"
AMD_ALIAS = "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:02:00.0 domain=0x000c address=0x300000 flags=0x0000]"
VIRTIO = "virtio_iommu virtio0: page fault from EP 264 at 0x200000 [W]"
ARM = "arm-smmu-v3 x.0.auto: event: F_TRANSLATION client: 0000:00:01.0 sid: 0x8 ssid: 0x0 iova: 0x200000 ipa: 0x0"
ARM_PASID = "arm-smmu-v3 x.0.auto: event: C_BAD_CD client: (unassigned sid) sid: 0x109 ssid: 0x1f"
VIRTIO_BARE = "virtio_iommu virtio0: domain fault from EP 8"


@pytest.mark.parametrize(
    ("text", "requester", "address", "access", "pasid"),
    [
        (NEW, "0000:02:00.0", 0x200000, Access.WRITE, None),
        (WITH_PASID, "0001:3a:1f.7", 0xFFFFF000, Access.READ, 0x1F),
        (OLDER, "0000:02:00.0", 0x200000, Access.WRITE, None),
        (OLDEST, "0000:02:00.0", 0x1000, Access.READ, None),
        (OLDEST_PASID, "0000:02:00.0", 0x1000, Access.READ, 5),
        (AMD, "0000:00:03.0", 0x200000, Access.WRITE, None),
        (AMD_ALIAS, "0000:02:00.0", 0x300000, Access.READ, None),
        (VIRTIO, "0000:01:01.0", 0x200000, Access.WRITE, None),
        (VIRTIO_BARE, "0000:00:01.0", None, None, None),
        (ARM, "0000:00:01.0", 0x200000, None, None),
        (ARM_PASID, "0000:01:01.1", None, None, 0x1F),
    ],
)
def test_fault(text: str, requester: str, address: int | None, access: Access | None, pasid: int | None) -> None:
    fault = parse_fault(line(text))
    assert fault is not None
    assert (fault.requester, fault.address, fault.access, fault.pasid) == (requester, address, access, pasid)
    assert fault.reason
    assert requester in str(fault)
    assert re.search(LOG_PATTERN, text)


@pytest.mark.parametrize(
    "text",
    [
        "DMAR: DRHD: handling fault status reg 2",
        "DMAR: [INTR-REMAP] Request device [0000:02:00.0] fault index 0x1 [fault reason 0x22] Present field",
        "vfio-pci 0000:02:01.0: resetting",
        "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:",
        'arm-smmu-v3 arm-smmu-v3.0.auto: unpriv data read s1 "Input address caused fault" stag: 0x0',
    ],
)
def test_no_fault(text: str) -> None:
    assert parse_fault(line(text)) is None


def test_what_a_program_wrote_is_none() -> None:
    assert parse_fault(line(NEW, facility=1)) is None
