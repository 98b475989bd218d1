"""What is invalidated of a VM's page tables when it has changed them (IOMMU_HWPT_INVALIDATE)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pyiommufd import diagnose, uapi
from pyiommufd.iterables import iterate
from pyiommufd.kernel.memory.arguments import U64_MAX, check_bool
from pyiommufd.kernel.pagetables.nested_data import TypedData, number, packed, words
from pyiommufd.printable import OneLine
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.kernel_object import KernelObject

_MOST = 1 << 19  # entries of one request (Linux 7.3, drivers/iommu/iommufd/hw_pagetable.c)


@dataclass(frozen=True, slots=True, repr=False)
class VTdInvalidation(OneLine):
    """What to invalidate of a first-stage page table of VT-d (struct iommu_hwpt_vtd_s1_invalidate).

    Attributes:
        address: Of the first page, as devices address it, on a page boundary.
        pages: How many pages of 4 KiB; None: everything, and the address is 0.
        leaf: Whether only last-level entries have changed.
    """

    address: int = 0
    pages: int | None = None
    leaf: bool = False

    def __post_init__(self) -> None:
        if number(self.address, 64, "address") % 4096:
            raise ValueError(f"address {self.address:#x} is not on a page boundary of 4096 bytes")
        if self.pages is None and self.address:
            raise ValueError("without pages everything is invalidated, and the address is 0")
        if self.pages is not None and not number(self.pages, 64, "pages"):
            raise ValueError("pages is at least 1; None stands for everything")
        check_bool(self.leaf, "leaf")

    @property
    def type(self) -> int:
        """IOMMU_HWPT_INVALIDATE_DATA_VTD_S1."""
        return uapi.IOMMU_HWPT_INVALIDATE_DATA_VTD_S1

    def __bytes__(self) -> bytes:
        flags = uapi.IOMMU_VTD_INV_FLAGS_LEAF if self.leaf else 0
        return struct.pack("=2Q2I", self.address, U64_MAX if self.pages is None else self.pages, flags, 0)


@dataclass(frozen=True, slots=True, repr=False)
class SMMUv3Command(OneLine):
    """A command of an SMMUv3's queue that invalidates (struct iommu_viommu_arm_smmuv3_invalidate; Arm IHI 0070, 4).

    The constructors are those that a VM may give. VMIDs are put in by the kernel; stream ids are the virtual ids of
    `VDevice`, and the addresses those of stage 1.

    Attributes:
        words: The two words of the command.
    """

    words: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", words(self.words, 2, "a command"))

    @property
    def type(self) -> int:
        """IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3."""
        return uapi.IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3

    def __bytes__(self) -> bytes:
        return struct.pack("<2Q", *self.words)

    @property
    def opcode(self) -> int:
        """What it is (the opcodes of Arm IHI 0070, 4.1.1)."""
        return self.words[0] & 0xFF

    def _line(self) -> str:
        return f"{diagnose.command_name(self.opcode)}, {self.words[0]:#x} {self.words[1]:#x}"

    @classmethod
    def tlbi_all(cls) -> Self:
        """All translations of the vIOMMU (CMD_TLBI_NSNH_ALL)."""
        return cls((0x30, 0))

    @classmethod
    def tlbi_nh_all(cls) -> Self:
        """All of stage 1 (CMD_TLBI_NH_ALL)."""
        return cls((0x10, 0))

    @classmethod
    def tlbi_asid(cls, asid: int) -> Self:
        """Those of one ASID (CMD_TLBI_NH_ASID)."""
        return cls((0x11 | number(asid, 16, "asid") << 48, 0))

    @classmethod
    def tlbi_va(cls, address: int, asid: int | None = None, *, pages: int = 1, leaf: bool = False) -> Self:
        """Those of some pages (CMD_TLBI_NH_VA, or CMD_TLBI_NH_VAA for all ASIDs).

        Args:
            address: Of the first page, on a page boundary of 4 KiB.
            asid: Of one ASID; None: of all.
            pages: How many pages of 4 KiB; above 1 it takes an SMMU that has range invalidation (IDR3.RIL), and a
                number that it can be told: (NUM + 1) << SCALE with both below 32.
            leaf: Whether only last-level entries have changed.

        Raises:
            ValueError, TypeError: These are no such numbers.
        """
        if number(address, 64, "address") % 4096:
            raise ValueError(f"address {address:#x} is not on a page boundary of 4096 bytes")
        first = 0x13 if asid is None else 0x12 | number(asid, 16, "asid") << 48
        second = address | check_bool(leaf, "leaf")
        if number(pages, 64, "pages") != 1:
            num, scale = _range(pages)
            first |= num << 12 | scale << 20
            second |= 1 << 10  # TG: pages of 4 KiB
        return cls((first, second))

    @classmethod
    def cfgi_cd(cls, stream_id: int, substream_id: int = 0, *, leaf: bool = True) -> Self:
        """A context descriptor of a device (CMD_CFGI_CD).

        Args:
            stream_id: The device's virtual id.
            substream_id: The PASID.
            leaf: Whether only the descriptor has changed, and no table that leads to it.
        """
        first = 0x05 | number(substream_id, 20, "substream_id") << 12 | number(stream_id, 32, "stream_id") << 32
        return cls((first, int(check_bool(leaf, "leaf"))))

    @classmethod
    def cfgi_cd_all(cls, stream_id: int) -> Self:
        """All context descriptors of a device (CMD_CFGI_CD_ALL)."""
        return cls((0x06 | number(stream_id, 32, "stream_id") << 32, 0))

    @classmethod
    def atc_inv(cls, stream_id: int, address: int = 0, size: int = 52, *, substream_id: int | None = None) -> Self:
        """What a device keeps itself (CMD_ATC_INV, where it has ATS).

        Args:
            stream_id: The device's virtual id.
            address: Of the first page, on a boundary of 4 KiB.
            size: Pages of 4 KiB, as a power of two, up to 52, which is everything.
            substream_id: The PASID; None: without one.
        """
        if number(address, 64, "address") % 4096:
            raise ValueError(f"address {address:#x} is not on a page boundary of 4096 bytes")
        first = 0x40 | number(stream_id, 32, "stream_id") << 32
        if substream_id is not None:
            first |= 1 << 11 | number(substream_id, 20, "substream_id") << 12
        return cls((first, address | number(size, 6, "size")))


def _range(pages: int) -> tuple[int, int]:
    """NUM and SCALE of so many pages."""
    for scale in range(32):
        num = (pages >> scale) - 1
        if 0 <= num < 32 and (num + 1) << scale == pages:
            return num, scale
    raise ValueError(f"{pages} pages are no (NUM + 1) << SCALE with both below 32; give several commands")


def invalidate(table: KernelObject, entries: Iterable[TypedData]) -> None:
    """Invalidate translations of a nested page table or of a vIOMMU; see `NestedHWPT.invalidate`."""
    entries = list(iterate(entries, "what is invalidated is a list of entries, such as [SMMUv3Command.tlbi_all()]"))
    if not entries:
        table._live()
        return
    data_type, length, packed = _pack(entries)
    result, done = table._call(ioctls.hwpt_invalidate, data_type, length, packed)
    if result:
        table._live()  # raises where it was closed meanwhile
        refused = entries[done] if done < len(entries) else None
        command = refused.words if isinstance(refused, SMMUv3Command) else None
        if done and result == -errno.EIO and data_type == uapi.IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3:
            # The driver counts what it has not passed on to the SMMU yet when it refuses a command: up to 62 of them
            # (Linux 7.3, arm_vsmmu_cache_invalidate). Given again, without the refused one, they are done.
            invalidate(table, entries[:done])
        raise diagnose.invalidation_error(-result, repr(table), len(entries), done, command)


def _pack(entries: Sequence[TypedData]) -> tuple[int, int, bytes]:
    """The type, the length of each in bytes, and the bytes of all."""
    pairs = [packed(entry, "an entry") for entry in entries]
    kinds = {(kind, len(data)) for kind, data in pairs}
    if len(kinds) != 1:
        listed = ", ".join(f"type {kind:#x} of {length} bytes" for kind, length in sorted(kinds))
        raise ValueError(f"the entries of one request are of one type and length; these are {listed}")
    if len(pairs) > _MOST:
        raise ValueError(f"{len(pairs)} entries are too many for one request, which takes {_MOST}")
    [(data_type, length)] = kinds
    if not length:
        raise ValueError("an entry has at least one byte")
    return data_type, length, b"".join(data for _, data in pairs)
