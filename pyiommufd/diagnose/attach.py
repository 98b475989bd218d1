"""Why VFIO_DEVICE_ATTACH_IOMMUFD_PT was refused (Linux 7.3: drivers/iommu/iommufd/device.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ..errors import Cause, GroupConflictError, IoctlError, ioctl_error
from ..host.devices import HostDevice

REQUEST = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"


def attach_error(code: int, device: HostDevice, wanted: str, peers: Sequence[tuple[HostDevice, str]]) -> IoctlError:
    """The exception for a refused attach.

    Args:
        code: The errno.
        device: What was to be attached.
        wanted: The page table that it was to be attached to, in words.
        peers: The members of its group that are attached to another page table, with that one's name.
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
    return ioctl_error(REQUEST, code, device.name, _other_causes(code, device, wanted))


def _other_causes(code: int, device: HostDevice, wanted: str) -> tuple[Cause, ...]:
    if code == errno.EADDRINUSE:
        group = device.group
        regions = ", ".join(
            f"{r.start:#x}..{r.last:#x} ({r.type})"
            for r in (group.reserved_regions if group else ())
            if "relaxable" not in r.type
        )
        return (
            Cause(
                f"a mapping or an allowed range of {wanted} lies where this device cannot reach or must not map",
                f"reserved for its group: {regions or 'nothing that sysfs shows'}",
                "map after the attach, or elsewhere: IOAS.iova_ranges() says where once a device is attached",
            ),
        )
    if code == errno.ENOMEM:
        return (
            Cause(
                f"memory mapped into {wanted} could not be pinned",
                "it is pinned by the first attach",
                "raise the limit on locked memory (ulimit -l), or map less",
            ),
        )
    if code == errno.EFAULT:
        return (
            Cause(
                f"memory mapped into {wanted} cannot be pinned for this access",
                "it is pinned by the first attach",
                "map read-only memory with writeable=False; registers and regular files cannot be mapped",
            ),
        )
    if code == errno.EINVAL:
        return (
            Cause(
                f"{wanted} does not fit {device.name}, or a member of its group is attached to another page table "
                "by another process",
                f"IOMMU group {device.group_id}",
                "",
            ),
        )
    return ()
