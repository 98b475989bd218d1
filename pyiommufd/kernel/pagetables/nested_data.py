"""What a driver of an IOMMU is given beside the general arguments, such as the stage-1 page tables of a VM.

Each is a number, the type, and bytes in the layout of that type. Those of IOMMUs that are typed here are classes with
fields; for others, and for what newer kernels have, there is `RawData`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pyiommufd import uapi
from pyiommufd.kernel.memory.arguments import check_bool, whole
from pyiommufd.printable import OneLine


class TypedData(Protocol):
    """The protocol of data for a driver of an IOMMU: its type, and its bytes."""

    @property
    def type(self) -> int:
        """What the bytes are, as a number of the request that they go with."""

    def __bytes__(self) -> bytes:
        """The data in the layout of its type."""


@dataclass(frozen=True, slots=True, repr=False)
class RawData(OneLine):
    """Data of a type that is not typed here.

    Attributes:
        type: The type: ``IOMMU_HWPT_DATA_…``, ``IOMMU_HWPT_INVALIDATE_DATA_…`` or the like.
        data: The bytes.
    """

    type: int
    data: bytes

    def __post_init__(self) -> None:
        number(self.type, 32, "type")
        object.__setattr__(self, "data", bytes(memoryview(self.data)))

    def __bytes__(self) -> bytes:
        return self.data


def number(value: int, bits: int, name: str) -> int:
    """A number of so many bits; raises ValueError or TypeError for what is none."""
    value = whole(value, name)
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is a number of {bits} bits, not {value:#x}")
    return value


def words(given: Sequence[int], count: int, name: str) -> tuple[int, ...]:
    """So many numbers of 64 bits; raises ValueError or TypeError for what is none."""
    found = tuple(number(word, 64, f"a word of {name}") for word in given)
    if len(found) != count:
        raise ValueError(f"{name} has {count} words of 64 bits, not {len(found)}")
    return found


def packed(data: TypedData, what: str) -> tuple[int, bytes]:
    """The type and the bytes of typed data; raises ValueError or TypeError for what is none, as bytes alone are."""
    if not hasattr(data, "type") or not hasattr(type(data), "__bytes__"):
        raise TypeError(f"{what} is typed data, such as RawData(type, data), not {type(data).__name__}")
    return number(data.type, 32, f"the type of {what}"), bytes(data)


@dataclass(frozen=True, slots=True, repr=False)
class SMMUv3Stage1(OneLine):
    """The part of a stream table entry that is the VM's (struct iommu_hwpt_arm_smmuv3; Arm IHI 0070, 5.2).

    V, Config (abort, bypass, or stage 1), the fields whose names begin with S1, and EATS. With V clear, all DMA is
    aborted. The addresses in it, and in what it leads to, are those of the nesting parent.

    Attributes:
        ste: The first two words of the entry.
    """

    ste: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ste", words(self.ste, 2, "ste"))

    @property
    def type(self) -> int:
        """IOMMU_HWPT_DATA_ARM_SMMUV3."""
        return uapi.IOMMU_HWPT_DATA_ARM_SMMUV3

    def __bytes__(self) -> bytes:
        return struct.pack("<2Q", *self.ste)


@dataclass(frozen=True, slots=True, repr=False)
class VTdStage1(OneLine):
    """A first-stage page table of VT-d (struct iommu_hwpt_vtd_s1; VT-d 9.6: the scalable-mode PASID table entry).

    Attributes:
        address: Of the topmost page table, in the nesting parent (FSPTPTR).
        address_width: Bits of the addresses that it translates: 48, or 57 with five levels.
        supervisor: Whether requests may be privileged (SRE).
        access_flags: Whether the extended access flag is set in entries that are used (EAFE).
        write_protect: Whether privileged requests may not write to what is read-only, either (WPE).
    """

    address: int
    address_width: int = 48
    supervisor: bool = False
    access_flags: bool = False
    write_protect: bool = False

    def __post_init__(self) -> None:
        number(self.address, 64, "address")
        number(self.address_width, 32, "address_width")
        for name in ("supervisor", "access_flags", "write_protect"):
            check_bool(getattr(self, name), name)

    @property
    def type(self) -> int:
        """IOMMU_HWPT_DATA_VTD_S1."""
        return uapi.IOMMU_HWPT_DATA_VTD_S1

    def __bytes__(self) -> bytes:
        flags = uapi.IOMMU_VTD_S1_SRE if self.supervisor else 0
        flags |= uapi.IOMMU_VTD_S1_EAFE if self.access_flags else 0
        flags |= uapi.IOMMU_VTD_S1_WPE if self.write_protect else 0
        return struct.pack("=2Q2I", flags, self.address, self.address_width, 0)


@dataclass(frozen=True, slots=True, repr=False)
class AMDGuest(OneLine):
    """A device table entry of a VM (struct iommu_hwpt_amd_guest; AMD I/O Virtualization Technology, 2.2.2).

    Attributes:
        dte: The four words of the entry. Mode and the host's page table are 0; that of the VM is given by GV, GLX and
            the GCR3 table.
    """

    dte: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dte", words(self.dte, 4, "dte"))

    @property
    def type(self) -> int:
        """IOMMU_HWPT_DATA_AMD_GUEST."""
        return uapi.IOMMU_HWPT_DATA_AMD_GUEST

    def __bytes__(self) -> bytes:
        return struct.pack("=4Q", *self.dte)
