"""Why VFIO_DEVICE_ATTACH_IOMMUFD_PT was refused (Linux 7.3: drivers/iommu/iommufd/device.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyiommufd.diagnose import fixes
from pyiommufd.diagnose.objects import MEDIATED, mediated_causes
from pyiommufd.errors import Cause, Fix, GroupConflictError, IoctlError, ioctl_error
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import Group
from pyiommufd.host.rows import Row, Rows, Subject

REQUEST = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"


NO_VDEVICE = Row(
    "the page table is nested in a vIOMMU that has no virtual device of this device",
    Fix("make it before the attach: VIOMMU.alloc_vdevice(device, virtual_id)", "make it before: IOMMU_VDEVICE_ALLOC"),
)


NOT_FOR_PASIDS = Row(
    "where a device has attachments with PASIDs, all of its page tables are to be made for them, also that without one",
    Fix("make each by alloc_hwpt(ioas, pasid=True)", "make each by IOMMU_HWPT_ALLOC with the flag for PASIDs"),
)


def attach_error(
    code: int,
    device: HostDevice,
    wanted: str,
    peers: Sequence[tuple[HostDevice, str]],
    mappings: Sequence[str] = (),
    nested: str = "",
) -> IoctlError:
    """The exception for a refused attach.

    Args:
        code: The errno.
        device: What was to be attached.
        wanted: The page table that it was to be attached to, in words.
        peers: The members of its group that are attached to another page table, with that one's name.
        mappings: The mappings that are in the way, in words.
        nested: What the page table is nested in, in words; empty: in nothing.
    """
    if code == errno.EINVAL and peers:
        causes = tuple(
            Cause(
                f"{peer.name} is in the same IOMMU group and attached to {table}, not to {wanted}",
                f"a group has one page table at a time; IOMMU group {peer.group_id}",
                f"attach {device.name} to {table}, or detach or replace {peer.name} first",
            )
            for peer, table in peers
        )
        return GroupConflictError(REQUEST, code, device.name, causes, peers=tuple(peer for peer, _ in peers))
    return ioctl_error(REQUEST, code, device.name, _other_causes(code, device, wanted, mappings, nested))


def pasids_error(device: str, which: str) -> IoctlError:
    """The exception for an attach with PASIDs, or beside some, where a page table is not made for them.

    Args:
        device: The device.
        which: The page table that is not, in words.
    """
    return ioctl_error(REQUEST, errno.EINVAL, device, (NOT_FOR_PASIDS.cause(which),))


def _other_causes(
    code: int, device: HostDevice, wanted: str, mappings: Sequence[str], nested: str
) -> tuple[Cause, ...]:
    which = "; ".join(mappings[:8]) + (" …" if len(mappings) > 8 else "")
    if code == errno.ENOENT:
        return mediated_causes(device) or ((NO_VDEVICE.cause(nested),) if nested else ())
    if nested and code == errno.EINVAL:
        return (
            Cause(
                f"{wanted} is of another IOMMU than {device.name}",
                nested,
                "nest it in a parent, or in a vIOMMU, of this device's IOMMU",
            ),
        )
    if code == errno.EADDRINUSE:
        regions = _reserved_regions(device.group)
        return (
            Cause(
                f"a mapping or an allowed range of {wanted} lies where this device cannot reach or must not map",
                f"it has mapped {which}"
                if which
                else f"reserved for its group: {regions or 'nothing that sysfs shows'}",
                *fixes.ELSEWHERE,
            ),
        )
    if code == errno.ENOMEM:
        return (
            Cause(
                f"memory mapped into {wanted} could not be pinned, which the first attach does",
                f"it has mapped {which}" if which else "",
                "raise the limit on locked memory (ulimit -l), or map less",
            ),
        )
    if code == errno.EFAULT:
        return (
            Cause(
                f"memory mapped into {wanted} cannot be pinned for this access, which the first attach does",
                f"mapped at {which}" if which else "",
                *fixes.READ_ONLY,
            ),
        )
    if code == errno.EINVAL:
        if which:
            return (
                Cause(
                    f"what is mapped into {wanted} does not fit {device.name}",
                    f"mapped at {which}",
                    *fixes.WHOLE_PAGES,
                ),
            )
        return (
            Cause(
                f"{wanted} does not fit {device.name}, or a process that shares this iommufd has attached a member of "
                "its group to another page table",
                f"IOMMU group {device.group_id}",
            ),
        )
    return ()


def _reserved_regions(group: Group | None) -> str:
    return ", ".join(
        f"{region.start:#x}..{region.last:#x} ({region.type})"
        for region in (group.reserved_regions if group is not None else ())
        if region.type != "direct-relaxable"
    )


def _peers_held(subject: Subject) -> tuple[Cause, ...] | None:
    peers = [member for member in subject.members if member != subject.device]
    held = subject.others(*peers)
    if not held:
        return None if peers else ()
    return tuple(
        Cause(
            "a peer of the same IOMMU group may be attached to another page table",
            str(holder),
            "attach to the same page table, or detach that peer first",
        )
        for holder in held
        if "/devices/" in holder.node
    )


def _reserved(subject: Subject) -> tuple[Cause, ...] | None:
    where = _reserved_regions(subject.group)
    if not where:
        return None
    return (
        Cause("a mapping lies where this device must not map, or cannot reach", f"reserved: {where}", *fixes.ELSEWHERE),
    )


def _pasids(subject: Subject) -> tuple[Cause, ...] | None:
    return () if subject.device.without_iommu else None  # the kernel then looks at no PASID


_PINS = "which the first attach does"

ATTACH: Rows = {
    (REQUEST, errno.EINVAL): (
        Row("a peer of the same IOMMU group is attached to another page table",
            "attach to the same page table, or detach that peer first", _peers_held),
        Row("what is mapped does not fit the device: off page boundaries, a non-memory file, or past a file's end",
            fixes.WHOLE_PAGES),
        Row("the page table was made for another IOMMU",
            Fix("make one for this device: alloc_hwpt()", "make one for this device: IOMMU_HWPT_ALLOC")),
        Row("the PASID is more than the device has, or the page table was not made for PASIDs",
            Fix("choose a PASID below 2 ** hw_info().pasid_width; allocate the page table for PASIDs",
                "choose a PASID of no more bits than pyiommufd caps DEVICE says; allocate the page table for PASIDs"),
            _pasids),
        NOT_FOR_PASIDS,
        Row("the id is that of neither an address space nor a page table", "attach to an IOAS or HWPT"),
    ),
    (REQUEST, errno.EADDRINUSE): (
        Row("a mapping or an allowed range is in a reserved region, such as that of MSIs, or out of the IOMMU's reach",
            fixes.ELSEWHERE, _reserved),
        Row("a mapping is not aligned to the IOMMU's pages", fixes.IOMMU_PAGES),
    ),
    (REQUEST, errno.ENOENT): (
        MEDIATED,
        NO_VDEVICE,
        Row("there is no object of that id", "attach to one that is not closed yet"),
    ),
    (REQUEST, errno.ENOMEM): (
        Row(f"mapped memory could not be pinned, {_PINS}: the limit on locked memory, or memory itself",
            "raise the limit on locked memory (ulimit -l), or map less"),
    ),
    (REQUEST, errno.EFAULT): (
        Row(f"mapped memory cannot be pinned for this access, {_PINS}",
            fixes.READ_ONLY),
    ),
    (REQUEST, errno.EOPNOTSUPP): (
        Row("the device's driver has no PASIDs",
            Fix("attach without pasid=", "attach without VFIO_DEVICE_ATTACH_PASID")),
    ),
    (REQUEST, errno.EBUSY): (
        Row("a driver in the kernel uses the group's page tables", "end the use of shared virtual addressing (PASIDs)"),
    ),
}  # fmt: skip
"""Every reason for a refused attach, for those who do not know what was attached where."""
