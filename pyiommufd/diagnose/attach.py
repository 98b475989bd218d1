"""Why VFIO_DEVICE_ATTACH_IOMMUFD_PT was refused (Linux 7.3: drivers/iommu/iommufd/device.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ..errors import Cause, GroupConflictError, IoctlError, ioctl_error
from ..host.devices import HostDevice

REQUEST = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"


def attach_error(
    code: int, device: HostDevice, wanted: str, peers: Sequence[tuple[HostDevice, str]], mappings: Sequence[str] = ()
) -> IoctlError:
    """The exception for a refused attach.

    Args:
        code: The errno.
        device: What was to be attached.
        wanted: The page table that it was to be attached to, in words.
        peers: The members of its group that are attached to another page table, with that one's name.
        mappings: The mappings that are in the way, in words.
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
    return ioctl_error(REQUEST, code, device.name, _other_causes(code, device, wanted, mappings))


def _other_causes(code: int, device: HostDevice, wanted: str, mappings: Sequence[str]) -> tuple[Cause, ...]:
    which = "; ".join(mappings[:8]) + (" …" if len(mappings) > 8 else "")
    if code == errno.EADDRINUSE:
        group = device.group
        regions = ", ".join(
            f"{region.start:#x}..{region.last:#x} ({region.type})"
            for region in (group.reserved_regions if group is not None else ())
            if region.type != "direct-relaxable"
        )
        return (
            Cause(
                f"a mapping or an allowed range of {wanted} lies where this device cannot reach or must not map",
                f"it has mapped {which}"
                if which
                else f"reserved for its group: {regions or 'nothing that sysfs shows'}",
                "map after the attach, or elsewhere: IOAS.iova_ranges() says where once a device is attached",
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
                "map read-only memory with writeable=False; device registers cannot be mapped this way",
            ),
        )
    if code == errno.EINVAL:
        if which:
            return (
                Cause(
                    f"what is mapped into {wanted} does not fit {device.name}",
                    f"mapped at {which}",
                    "map whole pages; of a file no more than it has",
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
