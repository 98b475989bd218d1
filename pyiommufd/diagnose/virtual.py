"""Why requests about nested page tables and virtual IOMMUs were refused (Linux 7.3: drivers/iommu/iommufd/viommu.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyiommufd import uapi
from pyiommufd.diagnose.objects import (
    EMULATE,
    EXISTS,
    LATER_HW_QUEUE,
    NESTED_IN_VIOMMU,
    NO_PARENT,
    NO_SMMU_CACHES,
    OTHER_IOMMU,
    WRONG_DATA,
    WRONG_ENTRY,
)
from pyiommufd.diagnose.smmuv3 import command_faults, command_name, ste_faults
from pyiommufd.errors import Cause, InvalidationError, IoctlError, ioctl_error

_ALLOC, _NESTED, _INVALIDATE = "IOMMU_VIOMMU_ALLOC", "IOMMU_HWPT_ALLOC", "IOMMU_HWPT_INVALIDATE"
_VDEVICE = "IOMMU_VDEVICE_ALLOC"


def viommu_alloc_error(code: int, device: str, parent: str, type_: int, hw_type: int | None) -> IoctlError:
    """The exception for a vIOMMU that was not made.

    Args:
        code: The errno.
        device: For whose IOMMU it was to be.
        parent: The page table, in words.
        type_: What was asked for.
        hw_type: What the device's IOMMU is (IOMMU_GET_HW_INFO); None where it does not say.
    """
    causes: tuple[Cause, ...] = ()
    if code == errno.EOPNOTSUPP:
        arm = (uapi.IOMMU_VIOMMU_TYPE_ARM_SMMUV3, uapi.IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV)
        if hw_type == uapi.IOMMU_HW_INFO_TYPE_ARM_SMMUV3 and type_ in arm:
            causes = (NO_SMMU_CACHES.cause(f"the IOMMU before {device} is an SMMUv3"),)
        else:
            causes = (EMULATE.cause(f"type {type_}; hw_info() of {device} says type {hw_type}"),)
    return ioctl_error(_ALLOC, code, f"{device}, {parent}", causes)


def nested_alloc_error(
    code: int, device: str, parent: str, ste: Sequence[int] | None, *, in_viommu: bool
) -> IoctlError:
    """The exception for a nested page table that was not made.

    Args:
        code: The errno.
        device: For whose IOMMU it was to be.
        parent: What it was to be nested in, in words.
        ste: The words of the stream table entry, where the data is one.
        in_viommu: Whether the parent is a vIOMMU, and not a page table.
    """
    causes: tuple[Cause, ...] = ()
    if code == errno.EINVAL:
        causes = (WRONG_DATA.general, (OTHER_IOMMU if in_viommu else NO_PARENT).general)
    if code == errno.EOPNOTSUPP and ste is not None and not in_viommu:
        causes = (NESTED_IN_VIOMMU.general,)
    if code == errno.EIO and ste is not None:
        faults = ste_faults(ste)
        causes = tuple(Cause(f"the stream table entry is refused: {one}", "", "correct that field") for one in faults)
    return ioctl_error(_NESTED, code, f"{device}, {parent}", causes)


def invalidation_error(
    code: int, target: str, count: int, done: int, command: Sequence[int] | None
) -> InvalidationError:
    """The exception for an invalidation that was refused, or was done in part.

    Args:
        code: The errno.
        target: Of what, in words.
        count: How many entries there were.
        done: How many of them the kernel has done.
        command: The words of the one that failed, where it is a command of an SMMUv3.
    """
    causes: tuple[Cause, ...] = ()
    if command is not None and code == errno.EIO:
        name = command_name(command[0] & 0xFF)
        faults = [Cause(f"{name} is refused: {one}", "", "correct that field") for one in command_faults(command)]
        unseen = Cause(
            f"{name} names a device or asks for what this vIOMMU does not have",
            "its fields are those of the command",
            "give the virtual id of a VDevice as stream id; hw_info() says what the SMMU can do",
            "give the virtual id of a vDEVICE as stream id; pyiommufd caps DEVICE says what the SMMU can do",
        )
        causes = tuple(faults) or (unseen,)
    if code == errno.EINVAL:
        causes = (WRONG_ENTRY.general,)
    target += f", entry {done + 1} of {count}" if done < count else ""
    return InvalidationError(_INVALIDATE, code, target, causes or ioctl_error(_INVALIDATE, code).causes, done=done)


def vdevice_alloc_error(code: int, device: str, viommu: str, others: Sequence[str]) -> IoctlError:
    """The exception for a virtual device that was not made.

    Args:
        code: The errno.
        device: Whose it was to be.
        viommu: Of which vIOMMU, in words.
        others: The virtual devices that have the same device or virtual id, in words.
    """
    causes = tuple(EXISTS.cause(other) for other in others) if code == errno.EEXIST else ()
    return ioctl_error(_VDEVICE, code, f"{device}, {viommu}", causes)


def hw_queue_destroy_error(code: int, queue: str) -> IoctlError:
    """The exception for a hardware queue that was not destroyed.

    Args:
        code: The errno.
        queue: Which, in words.
    """
    return ioctl_error("IOMMU_DESTROY", code, queue, (LATER_HW_QUEUE.general,) if code == errno.EBUSY else ())


def registers_map_error(code: int, viommu: str, offset: int, length: int) -> IoctlError:
    """The exception for registers that were not mapped.

    Args:
        code: The errno.
        viommu: Of which vIOMMU, in words.
        offset: Where they were to be, in bytes.
        length: How many bytes.
    """
    nothing = Cause(
        "its driver has given no registers of that offset and length", "", "give both as its data have them"
    )
    return ioctl_error(
        "mmap", code, f"{length:#x} bytes at {offset:#x} of {viommu}", (nothing,) if code == errno.ENXIO else ()
    )
