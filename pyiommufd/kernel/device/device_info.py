"""What a device says of itself and of its regions: flags, and the capabilities chained to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag

from pyiommufd import uapi
from pyiommufd.printable import OneLine
from pyiommufd.uapi import device_ioctls
from pyiommufd.uapi.device_ioctls import RawCapability, struct_fields, struct_size
from pyiommufd.uapi.ioctls import Fd


class DeviceFlag(IntFlag):
    """The kind of a device, and what it can do (VFIO_DEVICE_FLAGS_*)."""

    RESET = uapi.VFIO_DEVICE_FLAGS_RESET
    PCI = uapi.VFIO_DEVICE_FLAGS_PCI
    PLATFORM = uapi.VFIO_DEVICE_FLAGS_PLATFORM
    AMBA = uapi.VFIO_DEVICE_FLAGS_AMBA
    CCW = uapi.VFIO_DEVICE_FLAGS_CCW
    AP = uapi.VFIO_DEVICE_FLAGS_AP
    FSL_MC = uapi.VFIO_DEVICE_FLAGS_FSL_MC
    CAPS = uapi.VFIO_DEVICE_FLAGS_CAPS
    CDX = uapi.VFIO_DEVICE_FLAGS_CDX


class AtomicFlag(IntFlag):
    """The widths of atomic operations (VFIO_PCI_ATOMIC_COMP*)."""

    COMP32 = uapi.VFIO_PCI_ATOMIC_COMP32
    COMP64 = uapi.VFIO_PCI_ATOMIC_COMP64
    COMP128 = uapi.VFIO_PCI_ATOMIC_COMP128


@dataclass(frozen=True, slots=True, repr=False)
class UnknownCapability(OneLine):
    """A capability that this version of pyiommufd has no name for.

    Attributes:
        id: The kernel's number of it.
        version: The version of its struct.
        data: The struct, without its header.
    """

    id: int
    version: int
    data: bytes


@dataclass(frozen=True, slots=True, repr=False)
class PCIAtomics(OneLine):
    """The atomic operations that the root complex completes (VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP).

    Attributes:
        flags: Their widths.
    """

    flags: AtomicFlag


@dataclass(frozen=True, slots=True, repr=False)
class ZPCIBase(OneLine):
    """A zPCI function (struct vfio_device_info_cap_zpci_base); fields that newer kernels have added are 0 on older.

    Attributes:
        start_dma: The first DMA address that is available.
        end_dma: The last one.
        pchid: The physical channel's id.
        vfn: The number of the virtual function.
        fmb_length: Bytes of a measurement block.
        pft: The type of the function.
        gid: The id of its group, see `ZPCIGroup`.
        fh: The function handle.
        ccdf_err_length: The length of its error events (CCDF).
    """

    start_dma: int
    end_dma: int
    pchid: int
    vfn: int
    fmb_length: int
    pft: int
    gid: int
    fh: int = 0
    ccdf_err_length: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class ZPCIGroup(OneLine):
    """The properties of a group of zPCI functions (struct vfio_device_info_cap_zpci_group).

    Attributes:
        dasm: The mask of its DMA address space.
        msi_addr: The address that its message signalled interrupts are written to.
        flags: Bit 0: programs may ask for a refresh of translations (VFIO_DEVICE_INFO_ZPCI_FLAG_REFRESH).
        mui: The interval at which a measurement block is updated.
        noi: How many message signalled interrupts there are at most.
        maxstbl: The most bytes that one store-block instruction writes.
        version: The version of PCI that is supported.
        imaxstbl: As ``maxstbl``, where the instruction is interpreted.
    """

    dasm: int
    msi_addr: int
    flags: int
    mui: int
    noi: int
    maxstbl: int
    version: int
    imaxstbl: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class ZPCIUtil(OneLine):
    """A zPCI function's utility string (VFIO_DEVICE_INFO_CAP_ZPCI_UTIL).

    Attributes:
        util_str: The string, in EBCDIC: it identifies the device.
    """

    util_str: bytes


@dataclass(frozen=True, slots=True, repr=False)
class ZPCIPfip(OneLine):
    """A zPCI function's path (VFIO_DEVICE_INFO_CAP_ZPCI_PFIP).

    Attributes:
        pfip: The path to it within the hardware.
    """

    pfip: bytes


DeviceCapability = PCIAtomics | ZPCIBase | ZPCIGroup | ZPCIUtil | ZPCIPfip | UnknownCapability


@dataclass(frozen=True, slots=True, repr=False)
class MmapArea(OneLine):
    """A part of a region that can be mapped (struct vfio_region_sparse_mmap_area).

    Attributes:
        offset: Where it begins, in bytes from the start of the region.
        length: Bytes.
    """

    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.offset:#x}..{self.offset + self.length - 1:#x}"


@dataclass(frozen=True, slots=True, repr=False)
class SparseMmap(OneLine):
    """The only parts of a region that can be mapped (VFIO_REGION_INFO_CAP_SPARSE_MMAP).

    Attributes:
        areas: These parts.
    """

    areas: tuple[MmapArea, ...]


@dataclass(frozen=True, slots=True, repr=False)
class RegionType(OneLine):
    """The type of a region that is not a BAR (VFIO_REGION_INFO_CAP_TYPE).

    Attributes:
        type: What kind of region it is, a number that the driver chooses; with bit 31 set, the PCI vendor's own.
        subtype: A number that the type gives its meaning to.
    """

    type: int
    subtype: int


@dataclass(frozen=True, slots=True, repr=False)
class MSIXMappable(OneLine):
    """The mark of a region that can be mapped with its MSI-X table's page (VFIO_REGION_INFO_CAP_MSIX_MAPPABLE)."""


RegionCapability = SparseMmap | RegionType | MSIXMappable | UnknownCapability


@dataclass(frozen=True, slots=True, repr=False)
class DeviceInfo(OneLine):
    """The kind, regions and interrupts of a bound device (VFIO_DEVICE_GET_INFO). Returned by `Device.info`.

    Attributes:
        flags: Its kind, and whether it can be reset alone.
        num_regions: How many regions it has, counting empty ones.
        num_irqs: How many types of interrupt it has, counting those without an interrupt.
        capabilities: Further properties.
    """

    flags: DeviceFlag
    num_regions: int
    num_irqs: int
    capabilities: tuple[DeviceCapability, ...]

    def _line(self) -> str:
        more = "".join(f", {type(capability).__name__}" for capability in self.capabilities)
        return f"{self.flags.name or 'no flags'}, {self.num_regions} regions, {self.num_irqs} types of interrupt{more}"


def read_device_info(fd: Fd) -> DeviceInfo:
    """Ask a bound device what it is."""
    flags, regions, irqs, chain = device_ioctls.device_info(fd)
    return DeviceInfo(DeviceFlag(flags), regions, irqs, device_capabilities(chain))


def device_capabilities(chain: Iterable[RawCapability]) -> tuple[DeviceCapability, ...]:
    """The capabilities of a device, decoded. ValueError: one is shorter than its struct."""
    return tuple(_device_capability(*raw) for raw in chain)


def _device_capability(number: int, version: int, data: bytes) -> DeviceCapability:
    struct = "struct vfio_device_info_cap_"
    match number:
        case uapi.VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP:
            return PCIAtomics(AtomicFlag(struct_fields(f"{struct}pci_atomic_comp", data)["flags"]))
        case uapi.VFIO_DEVICE_INFO_CAP_ZPCI_BASE:
            return ZPCIBase(**_fields(f"{struct}zpci_base", data, ZPCIBase.__match_args__))
        case uapi.VFIO_DEVICE_INFO_CAP_ZPCI_GROUP:
            return ZPCIGroup(**_fields(f"{struct}zpci_group", data, ZPCIGroup.__match_args__))
        case uapi.VFIO_DEVICE_INFO_CAP_ZPCI_UTIL:
            return ZPCIUtil(_trailing(f"{struct}zpci_util", data))
        case uapi.VFIO_DEVICE_INFO_CAP_ZPCI_PFIP:
            return ZPCIPfip(_trailing(f"{struct}zpci_pfip", data))
    return _unknown(number, version, data)


def region_capabilities(chain: Iterable[RawCapability]) -> tuple[RegionCapability, ...]:
    """The capabilities of a region, decoded. ValueError: one is shorter than its struct."""
    return tuple(_region_capability(*raw) for raw in chain)


def _region_capability(number: int, version: int, data: bytes) -> RegionCapability:
    match number:
        case uapi.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            header, area = "struct vfio_region_info_cap_sparse_mmap", "struct vfio_region_sparse_mmap_area"
            areas = [
                struct_fields(area, data, struct_size(header) + index * struct_size(area))
                for index in range(struct_fields(header, data)["nr_areas"])
            ]
            return SparseMmap(tuple(MmapArea(each["offset"], each["size"]) for each in areas))
        case uapi.VFIO_REGION_INFO_CAP_TYPE:
            fields = struct_fields("struct vfio_region_info_cap_type", data)
            return RegionType(fields["type"], fields["subtype"])
        case uapi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE:
            return MSIXMappable()
    return _unknown(number, version, data)


def _unknown(number: int, version: int, data: bytes) -> UnknownCapability:
    return UnknownCapability(number, version, data[struct_size("struct vfio_info_cap_header") :])


def _fields(struct: str, data: bytes, names: Sequence[str]) -> dict[str, int]:
    # Older kernels have shorter structs, whose versions say so.
    found = struct_fields(struct, data.ljust(struct_size(struct), b"\0"))
    return {name: found[name] for name in names}


def _trailing(struct: str, data: bytes) -> bytes:
    start = struct_size(struct)
    return data[start : start + struct_fields(struct, data)["size"]]


def mappable_areas(
    size: int, capabilities: Sequence[RegionCapability], msix_table: MmapArea | None, page: int
) -> tuple[MmapArea, ...]:
    """The parts of a region that can be mapped, as far as the region can be at all. Size and page are in bytes.

    msix_table: where in the region it lies, if there.
    """
    for capability in capabilities:
        if isinstance(capability, SparseMmap):
            return tuple(area for area in capability.areas if area.length)
    if msix_table is None or any(isinstance(capability, MSIXMappable) for capability in capabilities):
        return (MmapArea(0, size),)
    # Before Linux 4.16 the pages that hold the table could not be mapped (a32295c612c5).
    start = msix_table.offset // page * page
    end = -(-(msix_table.offset + msix_table.length) // page) * page
    return tuple(MmapArea(*area) for area in ((0, start), (end, size - end)) if area[1] > 0)
