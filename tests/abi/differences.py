"""Where this project's declarations and a kernel's headers differ, and which differences are meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.abi.header_facts import HeaderFacts, Struct

DECLARED = (7, 3)
"""The kernel whose ABI pyiommufd/uapi declares in full. An older one may lack names, and fields at a struct's end."""

# Name: what the kernel's headers say, what ours say, why.
MEANT: dict[str, tuple[int, int, str]] = {
    "VFIO_PCI_DEVID_NOT_OWNED": (-1, 0xFFFF_FFFF, "compared with a field that has no sign"),
    "VFIO_REGION_TYPE_PCI_VENDOR_TYPE": (-(1 << 31), 1 << 31, "part of a field that has no sign"),
}
CHANGED_SINCE: dict[str, tuple[int, int, str]] = {
    "VFIO_AP_NUM_IRQS": (1, 2, "in older kernels requests were the only interrupt of an AP device"),
}

# What ours leave out, and why.
LEFT_OUT = {
    r"VFIO_EEH\w*|struct vfio_eeh_\w+": "error handling of pSeries, through the container interface",
    r"VFIO_SPAPR_\w+|VFIO_IOMMU_SPAPR_\w+|struct vfio_iommu_spapr_\w+": "the pSeries IOMMU's container interface",
    r"VFIO_IOMMU_(ENABLE|DISABLE)": "requests of the pSeries container",
    r"VFIO_CCW_(CONFIG_REGION_INDEX|NUM_REGIONS)|VFIO_REGION_SUBTYPE_CCW_\w+": "regions of channel devices of s390",
    r"VFIO_REGION_SUBTYPE_\w+NVLINK2\w*|VFIO_REGION_INFO_CAP_NVLINK2_\w+|struct vfio_region_info_cap_nvlink2_\w+": (
        "NVLink 2, whose driver left the kernel before iommufd came"
    ),
    r"VFIO_DEVICE_STATE_(V1_\w+|MASK|VALID|IS_ERROR|SET_ERROR)|VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED"
    r"|struct vfio_device_migration_info": "the first migration interface, which no kernel with iommufd has",
    r"VFIO_TYPE1_NESTING_IOMMU|__VFIO_RESERVED_TYPE1_NESTING_IOMMU": "a container type that was withdrawn",
    r"VFIO_DEVICE_API_\w+_STRING": "strings of the mediated devices' sysfs, which Python compares as such",
}


@dataclass
class Comparison:
    """What came of comparing.

    Attributes:
        wrong: Differences that are not meant; none is what is wanted.
        constants: How many constants were compared; ioctls are among them.
        structs: How many structs.
        fields: How many of their fields.
        left_out: Names that the kernel has and ours lack on purpose, by the reason.
        newer: Names that ours have and this older kernel lacks.
    """

    wrong: list[str] = field(default_factory=list)
    constants: int = 0
    structs: int = 0
    fields: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    newer: list[str] = field(default_factory=list)


def compare(kernel: HeaderFacts, ours: HeaderFacts, release: tuple[int, ...]) -> Comparison:
    """Compare a kernel's headers with ours, name by name.

    Args:
        kernel: What the kernel's headers declare.
        ours: What ours declare.
        release: The kernel's version.
    """
    older = release[:2] < DECLARED
    meant = MEANT | CHANGED_SINCE if older else MEANT
    result = Comparison()
    for name in sorted(kernel.constants.keys() & ours.constants.keys()):
        result.constants += 1
        theirs, mine = kernel.constants[name], ours.constants[name]
        expected = meant[name][:2] if name in meant else (theirs, theirs)
        if (theirs, mine) != expected:
            result.wrong.append(f"{name}: the kernel says {theirs:#x}, ours {mine:#x}")
    for name in sorted(kernel.structs.keys() & ours.structs.keys()):
        result.structs += 1
        result.fields += len(kernel.structs[name].fields)
        result.wrong += _layout(name, kernel.structs[name], ours.structs[name], older)
    for name in sorted((kernel.names | kernel.others) - ours.names - ours.others):
        reasons = [why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, name)]
        if reasons:
            result.left_out.setdefault(reasons[0], []).append(name)
        elif not re.search(r"_H_*$", name):  # the guard of a header
            result.wrong.append(f"{name}: the kernel has it and ours lack it; declare it, or say in LEFT_OUT why not")
    result.newer = sorted(ours.names - kernel.names)
    if result.newer and not older:
        result.wrong += [f"{name}: ours have it and the kernel lacks it" for name in result.newer]
    return result


def _layout(name: str, kernel: Struct, ours: Struct, older: bool) -> list[str]:
    wrong = []
    for label, theirs in kernel.fields.items():
        mine = ours.fields.get(label)
        if mine != theirs:
            wrong.append(f"struct {name}.{label}: the kernel says {theirs}, ours {mine or 'lack it'}")
    added = {label: mine for label, mine in ours.fields.items() if label not in kernel.fields}
    places = {(each.offset, each.size) for each in kernel.fields.values()}
    # A struct grows after its last field, padding first; or a field gets a second name, in a union.
    end = max(each.offset + (each.size or 0) for each in kernel.fields.values())
    beyond = [label for label, mine in added.items() if mine.offset >= end]
    renamed = [label for label, mine in added.items() if (mine.offset, mine.size) in places]
    if added and not (older and set(added) == {*beyond, *renamed}):
        wrong.append(f"struct {name}: ours have {', '.join(added)}, which the kernel lacks")
    same_size = (kernel.size, kernel.alignment) == (ours.size, ours.alignment)
    if not same_size and not (older and beyond and ours.size > kernel.size):
        wrong.append(
            f"struct {name}: the kernel's has {kernel.size} bytes on boundaries of {kernel.alignment}, "
            f"ours {ours.size} on {ours.alignment}"
        )
    return wrong
