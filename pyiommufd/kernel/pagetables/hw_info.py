"""Type and capabilities of a device's IOMMU (IOMMU_GET_HW_INFO)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pyiommufd import uapi
from pyiommufd.printable import OneLine, brief


class HWInfoType(IntEnum):
    """The vendors whose data `HWInfo` decodes; a number that is not here stays a plain int."""

    NONE = uapi.IOMMU_HW_INFO_TYPE_NONE
    INTEL_VTD = uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD
    ARM_SMMUV3 = uapi.IOMMU_HW_INFO_TYPE_ARM_SMMUV3
    TEGRA241_CMDQV = uapi.IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV
    AMD = uapi.IOMMU_HW_INFO_TYPE_AMD


class HWCapability(IntFlag):
    """The capabilities of an IOMMU for a device. Bits of newer kernels that have no name here are kept."""

    DIRTY_TRACKING = uapi.IOMMU_HW_CAP_DIRTY_TRACKING
    """`Device.alloc_hwpt` takes ``dirty_tracking=True``."""
    PCI_PASID_EXEC = uapi.IOMMU_HW_CAP_PCI_PASID_EXEC
    """Requests with a PASID may ask for execute permission."""
    PCI_PASID_PRIV = uapi.IOMMU_HW_CAP_PCI_PASID_PRIV
    """Requests with a PASID may be privileged."""
    PCI_ATS_NOT_SUPPORTED = uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED
    """The device cannot keep translations (ATS) behind this IOMMU."""


@dataclass(frozen=True, slots=True, repr=False)
class IntelVTd(OneLine):
    """The registers of VT-d (struct iommu_hw_info_vtd; Intel Virtualization Technology for Directed I/O, 11.4).

    Attributes:
        flags: ``IOMMU_HW_INFO_VTD_…``: errata.
        capabilities: The register CAP.
        extended_capabilities: The register ECAP.
    """

    flags: int
    capabilities: int
    extended_capabilities: int

    @property
    def address_widths(self) -> tuple[int, ...]:
        """Widths in bits of the addresses that second-stage page tables can have (CAP.SAGAW)."""
        return tuple(width for bit, width in ((9, 39), (10, 48), (11, 57)) if self.capabilities >> bit & 1)

    @property
    def nesting(self) -> bool:
        """Whether first-stage page tables can be nested in second-stage ones (ECAP.NEST)."""
        return bool(self.extended_capabilities >> 26 & 1)


@dataclass(frozen=True, slots=True, repr=False)
class ArmSMMUv3(OneLine):
    """The registers of an SMMU (struct iommu_hw_info_arm_smmuv3; Arm IHI 0070, 6.3).

    Attributes:
        flags: ``IOMMU_HW_INFO_ARM_SMMUV3_…``: errata.
        idr: The registers IDR0 to IDR5; what the kernel does not let through to a VM is not to be relied on.
        iidr: The register IIDR: implementer, product and revision.
        aidr: The register AIDR: the version of the architecture.
    """

    flags: int
    idr: tuple[int, int, int, int, int, int]
    iidr: int
    aidr: int


@dataclass(frozen=True, slots=True, repr=False)
class Tegra241CMDQV(OneLine):
    """The command queues that NVIDIA's SMMU gives to VMs (struct iommu_hw_info_tegra241_cmdqv).

    Attributes:
        flags: None are defined.
        version: Of the CMDQV hardware.
        log2vcmdqs: Command queues that a VM can have, as a power of two.
        log2vsids: Stream ids that a VM can have, as a power of two.
    """

    flags: int
    version: int
    log2vcmdqs: int
    log2vsids: int


@dataclass(frozen=True, slots=True, repr=False)
class AMD(OneLine):
    """The registers of an AMD IOMMU (struct iommu_hw_info_amd; AMD I/O Virtualization Technology, 3.4).

    Attributes:
        efr: The extended feature register.
        efr2: The extended feature 2 register.
    """

    efr: int
    efr2: int


@dataclass(frozen=True, slots=True, repr=False)
class HWInfo(OneLine):
    """Type and capabilities of a device's IOMMU (IOMMU_GET_HW_INFO). A snapshot, from `Device.hw_info`.

    Attributes:
        type: The type of the IOMMU: a `HWInfoType`, or the plain number where this library does not know it.
        capabilities: What it can do for the device.
        pasid_width: Bits of the PASIDs that the device may use; 0 where it may use none.
        data: The vendor's data as the kernel gave it.
        decoded: The same, decoded; None where the type is not known, or there is no data.
    """

    type: HWInfoType | int
    capabilities: HWCapability
    pasid_width: int
    data: bytes
    decoded: IntelVTd | ArmSMMUv3 | Tegra241CMDQV | AMD | None

    def _line(self) -> str:
        kind = self.type.name if isinstance(self.type, HWInfoType) else f"type {self.type}"
        pasids = f"PASIDs of {self.pasid_width} bits" if self.pasid_width else "no PASIDs"
        return f"{kind}, {pasids}, {brief(self.capabilities) if self.capabilities else 'no capabilities'}"


def hw_info(data_type: int, pasid_width: int, capabilities: int, data: bytes) -> HWInfo:
    """What IOMMU_GET_HW_INFO has answered, as an object."""
    try:
        kind: HWInfoType | int = HWInfoType(data_type)
    except ValueError:
        kind = data_type
    return HWInfo(kind, HWCapability(capabilities), pasid_width, data, _decode(kind, data))


_VTD = struct.Struct("=I4xQQ")
_SMMUV3 = struct.Struct("=I4x6III")
_CMDQV = struct.Struct("=IBBBx")
_AMD = struct.Struct("=QQ")


def _decode(kind: int, data: bytes) -> IntelVTd | ArmSMMUv3 | Tegra241CMDQV | AMD | None:
    # A newer kernel's struct may be longer. One that is shorter than Linux 7.3's is not one of these.
    if kind == HWInfoType.INTEL_VTD and len(data) >= _VTD.size:
        return IntelVTd(*_VTD.unpack_from(data))
    if kind == HWInfoType.ARM_SMMUV3 and len(data) >= _SMMUV3.size:
        flags, *idr, iidr, aidr = _SMMUV3.unpack_from(data)
        return ArmSMMUv3(flags, (idr[0], idr[1], idr[2], idr[3], idr[4], idr[5]), iidr, aidr)
    if kind == HWInfoType.TEGRA241_CMDQV and len(data) >= _CMDQV.size:
        return Tegra241CMDQV(*_CMDQV.unpack_from(data))
    if kind == HWInfoType.AMD and len(data) >= _AMD.size:
        return AMD(*_AMD.unpack_from(data))
    return None
