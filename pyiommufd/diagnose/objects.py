"""Why requests about an iommufd's objects were refused (Linux 7.3: drivers/iommu/iommufd)."""

from __future__ import annotations

import errno

from pyiommufd.diagnose import fixes
from pyiommufd.errors import Cause, Fix, IoctlError, ioctl_error
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.rows import Row, Rows, Subject

_OPTION, _PROCESS, _VFIO_IOAS = "IOMMU_OPTION", "IOMMU_IOAS_CHANGE_PROCESS", "IOMMU_VFIO_IOAS"
_HWPT, _TRACK, _BITMAP = "IOMMU_HWPT_ALLOC", "IOMMU_HWPT_SET_DIRTY_TRACKING", "IOMMU_HWPT_GET_DIRTY_BITMAP"
_INVALIDATE, _INFO, _PA = "IOMMU_HWPT_INVALIDATE", "IOMMU_GET_HW_INFO", "IOMMU_IOAS_NOIOMMU_GET_PA"
_VIOMMU, _VDEVICE, _EVENTS, _QUEUE = (
    "IOMMU_VIOMMU_ALLOC", "IOMMU_VDEVICE_ALLOC", "IOMMU_VEVENTQ_ALLOC", "IOMMU_HW_QUEUE_ALLOC",
)  # fmt: skip
_DESTROY = "IOMMU_DESTROY"


def _mediated(subject: Subject) -> tuple[Cause, ...]:
    return mediated_causes(subject.device)


MEDIATED = Row(
    "the device is a mediated one: no IOMMU is before it, and so no page table",
    Fix("attach() it to an IOAS", "attach it to an address space"),
    _mediated,
)


_NO_INFO = Row(
    "the device is a mediated one: no IOMMU is before it, and so there is nothing to tell",
    "do without: its parent's driver reaches what is mapped for it",
    lambda subject: mediated_info_causes(subject.device),
)


def mediated_causes(device: HostDevice) -> tuple[Cause, ...]:
    """That a device is a mediated one, where it is."""
    return _of_mediated(MEDIATED, device)


def mediated_info_causes(device: HostDevice) -> tuple[Cause, ...]:
    """That nothing is told of the IOMMU of a device that is a mediated one, where it is."""
    return _of_mediated(_NO_INFO, device)


def _of_mediated(row: Row, device: HostDevice) -> tuple[Cause, ...]:
    return (row.cause(f"it is on the bus {device.subsystem}"),) if device.is_mediated else ()


def _plain_tables_only(subject: Subject) -> tuple[Cause, ...] | None:
    if not subject.device.without_iommu:
        return None
    summary = "there are no page tables of that kind where no IOMMU is: nested, tracking, for PASIDs"
    return (Cause(summary, f"no IOMMU covers {subject.device.name}", "do without"),)


_MAPPED = Row("what is mapped cannot be pinned, or does not fit the IOMMU", "see the same errno of IOMMU_IOAS_MAP")

WRONG_DATA = Row("the type or length of the data is not what this IOMMU takes", fixes.HW_INFO)
HUGE_PAGES_IN_USE = Row(
    "huge pages cannot be turned off while memory is mapped into a page table", "turn them off before the first map"
)

NO_SMMU_CACHES = Row(
    "the SMMU has no S2FWB, nor does the firmware say that DMA cannot bypass caches (CANWBS in the ACPI IORT): a VM "
    "could make its DMA incoherent, so there are no vIOMMUs",
    Fix(
        "emulate the IOMMU by plain HWPTs, or take a machine with either; Guest(iommu='smmuv3-nested') is one",
        "emulate the IOMMU by plain HWPTs, or take a machine with either; pyiommufd guest --iommu smmuv3-nested is one",
    ),
)
EMULATE = Row(
    "this kernel or this IOMMU's driver has no virtual IOMMUs of that type",
    Fix(
        "emulate the IOMMU by plain HWPTs; hw_info() says which one it is",
        "emulate the IOMMU by plain HWPTs; pyiommufd caps DEVICE says which one it is",
    ),
)

NO_PARENT = Row(
    "the parent is not a page table made to be nested in",
    Fix("allocate it by alloc_hwpt(ioas, nest_parent=True)", "allocate the parent as a nesting parent"),
)
NESTED_IN_VIOMMU = Row(
    "page tables of an SMMUv3 are nested in a vIOMMU",
    Fix("make it by VIOMMU.alloc_nested()", "give the id of the vIOMMU as pt_id"),
)
OTHER_IOMMU = Row("the device is behind another IOMMU than the vIOMMU", "make a vIOMMU by this device")
WRONG_ENTRY = Row(
    "the type, the length or a field of an entry is not what this IOMMU takes, or it names no virtual device",
    fixes.HW_INFO,
)

EXISTS = Row("the device, or that virtual id, has a virtual device already", "close that one first")

_USED = Row("other objects use it: a device is attached, or a page table was made from it", "close these first")
_OPEN_QUEUE = Row("the fd of a fault or event queue is still open", "close that fd first")
LATER_HW_QUEUE = Row("the hardware queue of the next number is there", "close the one of the highest number first")


def _not_covered(subject: Subject) -> tuple[Cause, ...]:
    if not subject.device.without_iommu:
        return ()
    group = "in no IOMMU group" if subject.group is None else f"in group {subject.group.id}, which VFIO has made"
    return (Cause("no IOMMU covers the device, so there is nothing to tell", f"it is {group}", _DO_WITHOUT),)


_DO_WITHOUT = "do without: its DMA is not translated"

OBJECTS: Rows = {
    (_DESTROY, errno.EBUSY): (_USED, _OPEN_QUEUE, LATER_HW_QUEUE),
    (_OPTION, errno.EPERM): (
        Row("accounting by process takes CAP_SYS_RESOURCE in the initial user namespace", "set it as root"),
    ),
    (_OPTION, errno.EBUSY): (
        Row("the iommufd has objects already: accounting is chosen before the first", "set it on a new iommufd"),
    ),
    (_OPTION, errno.EINVAL): (
        HUGE_PAGES_IN_USE,
        Row("the value is neither 0 nor 1", Fix("give True or False", "give 0 or 1")),
    ),
    (_PROCESS, errno.EINVAL): (
        Row("a mapping is of memory, not of a file: it cannot change its process", "map memfds (IOMMU_IOAS_MAP_FILE)"),
    ),
    (_PROCESS, errno.ENOMEM): (
        Row("the process that takes over may not lock so much memory", "raise its limit on locked memory"),
    ),
    (_VFIO_IOAS, errno.ENODEV): (Row("no address space is set for VFIO's old interface", "set one first"),),
    (_HWPT, errno.EINVAL): (
        WRONG_DATA,
        NO_PARENT,
        Row("the parent is neither an address space nor a page table", "give an IOAS or HWPT"),
    ),
    (_HWPT, errno.EOPNOTSUPP): (
        Row("this IOMMU has no page tables of that kind: nested, tracking, for PASIDs",
            Fix("hw_info() says which it has", "pyiommufd caps DEVICE says which it has"),
            _plain_tables_only),
        NESTED_IN_VIOMMU,
    ),
    (_HWPT, errno.EADDRINUSE): (_MAPPED,),
    (_HWPT, errno.EFAULT): (_MAPPED,),
    (_HWPT, errno.ENOMEM): (_MAPPED,),
    (_HWPT, errno.ENOENT): (
        MEDIATED,
        Row("there is no device or page table of that id", "give a bound device"),
    ),
    (_TRACK, errno.EOPNOTSUPP): (
        Row("the page table was not made to track dirty pages, or its IOMMU cannot", "allocate it with dirty tracking"),
    ),
    (_BITMAP, errno.EINVAL): (
        Row("the range is not aligned, or not all of it is mapped", "ask for whole mappings"),
        Row("dirty tracking is off",
            Fix("turn it on: set_dirty_tracking(True)", "turn it on: IOMMU_HWPT_SET_DIRTY_TRACKING")),
    ),
    (_BITMAP, errno.EOPNOTSUPP): (Row("the page table was not made to track", "allocate it with dirty tracking"),),
    (_INVALIDATE, errno.EINVAL): (
        Row("the page table is not a nested one", "invalidate the nested one"),
        WRONG_ENTRY,
    ),
    (_INVALIDATE, errno.EOPNOTSUPP): (Row("an entry asks for what this IOMMU does not do", "leave that entry out"),),
    (_INFO, errno.EOPNOTSUPP): (
        Row("no IOMMU covers the device, so there is nothing to tell", _DO_WITHOUT, _not_covered),
        Row("this kernel, or this IOMMU's driver, tells nothing", "use a newer kernel"),
    ),
    (_INFO, errno.ENOENT): (_NO_INFO, Row("there is no device of that id", "bind a device")),
    (_HWPT, errno.EIO): (
        Row("a field of the stream table entry is not the VM's to set (SMMUv3)",
            "set V, Config 0b0, 0b100 or 0b101, and the S1 fields alone"),
    ),
    (_INVALIDATE, errno.EIO): (
        Row("a command's opcode or a field of it is not the VM's to give, or names no virtual device (SMMUv3)",
            Fix("see InvalidationError.done: the entry of that number", "see entry_num: the entry of that number")),
    ),
    (_VIOMMU, errno.EOPNOTSUPP): (NO_SMMU_CACHES, EMULATE),
    (_VIOMMU, errno.EINVAL): (
        Row("the page table is no nesting parent, or of another IOMMU", NO_PARENT.fix),
        Row("the data are not what this IOMMU's driver takes", "give data of the layout of that type, or none"),
    ),
    (_VDEVICE, errno.EINVAL): (OTHER_IOMMU,),
    (_VDEVICE, errno.EEXIST): (EXISTS,),
    (_EVENTS, errno.EEXIST): (Row("the vIOMMU has an event queue of that type already", "use or close that one"),),
    (_EVENTS, errno.EINVAL): (Row("the depth is 0, or above 1 << 19", "give one from 1 to 1 << 19"),),
    (_EVENTS, errno.EOPNOTSUPP): (Row("the vIOMMU has no events of that type", "give the type of the vIOMMU"),),
    (_QUEUE, errno.EFAULT): (
        Row("the guest's memory for the queue is not contiguous in the host", "back the guest by huge pages"),
    ),
    (_QUEUE, errno.EINVAL): (
        Row("the vIOMMU has no queue of that number", "give a lower one"),
        Row("the length of the queue's memory, or where it begins, does not suit the IOMMU",
            "give as much memory as its queues take, aligned as they are"),
    ),
    (_QUEUE, errno.EOPNOTSUPP): (Row("the vIOMMU has no hardware queues of that type", "do without"),),
    (_QUEUE, errno.ENOENT): (
        Row("not all of the queue's memory is mapped", "map it in the address space of the nesting parent"),
    ),
    (_QUEUE, errno.EEXIST): (Row("there is a queue of that number", "close that one first"),),
    (_QUEUE, errno.EIO): (
        Row("there is none of the number before it", "make the queues in the order of their numbers"),
    ),
    (_PA, errno.EPERM): (Row("physical addresses are shown to CAP_SYS_RAWIO only", "run as root"),),
    (_PA, errno.EOPNOTSUPP): (
        Row("no device without an IOMMU is attached to the address space, or others are too",
            "attach devices without an IOMMU, and no others"),
    ),
    (_PA, errno.ENOENT): (Row("nothing is mapped at that address", "map it first"),),
    (_PA, errno.EINVAL): (Row("a dma-buf is mapped there that has been revoked", "unmap it, and map it anew"),),
}  # fmt: skip
"""Every reason for a refused request about page tables, options and virtual IOMMUs."""


def destroy_error(code: int, target: str, *, queue: bool) -> IoctlError:
    """The exception for an object that was not destroyed.

    Args:
        code: The errno.
        target: The object, in words.
        queue: Whether it is one that has an fd of its own.
    """
    busy = (_USED.general, _OPEN_QUEUE.general) if queue else (_USED.general,)
    return ioctl_error(_DESTROY, code, target, busy if code == errno.EBUSY else ())
