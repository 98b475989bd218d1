"""Why VFIO_DEVICE_BIND_IOMMUFD was refused (Linux 7.3: drivers/vfio/device_cdev.c, drivers/iommu/iommufd/device.c)."""

from __future__ import annotations

import errno
import os

from ..errors import Cause, GroupNotViableError, IoctlError, ioctl_error
from ..host import sysfs
from ..host.devices import HostDevice
from ..host.groups import Group
from ..host.holders import Holder, holders

REQUEST = "VFIO_DEVICE_BIND_IOMMUFD"


def bind_error(code: int, device: HostDevice, fd: int) -> IoctlError:
    """The exception for a refused bind, with what this machine shows of the reason.

    Args:
        code: The errno.
        device: What was to be bound.
        fd: The cdev's fd that it was to be bound through, which is no other user of the device.
    """
    group = device.group
    blockers = group.blockers if group is not None and code == errno.EPERM else ()
    found: tuple[Cause, ...] = ()
    if group is not None and code == errno.EPERM:
        found = tuple(_not_permitted(device, group, fd))
    elif group is not None and code == errno.EINVAL:
        found = tuple(_invalid(device, group, fd))
    elif group is not None and code == errno.EBUSY:
        found = tuple(_busy(group, fd))
    elif code == errno.EACCES:
        found = (
            Cause(
                "the VF token is missing or wrong",
                "the physical function is driven by a vfio driver",
                "bind with token= as set by the driver of the physical function",
            ),
        )
    if blockers:
        return GroupNotViableError(REQUEST, code, device.name, found, blockers=blockers)
    return ioctl_error(REQUEST, code, device.name, found)


def _others(devices: tuple[HostDevice, ...], fd: int) -> list[Holder]:
    own = f"fd {fd}"
    return [h for h in holders(*devices) if not (h.pid == os.getpid() and h.how == own)]


def _not_permitted(device: HostDevice, group: Group, fd: int) -> list[Cause]:
    causes = [
        Cause(
            f"{member.name} is in the same IOMMU group and on the host driver {member.driver}",
            f"IOMMU group {group.id}: {', '.join(d.name for d in group.devices)}",
            f"claim the group: plan_claim([{device.name!r}]).apply()",
        )
        for member in group.blockers
    ]
    causes += [
        Cause(
            "the group may be owned by another iommufd, or through its legacy node",
            str(holder),
            "bind all devices of a group to one iommufd, or end that use",
        )
        for holder in _others(group.devices, fd)
    ]
    unsafe = sysfs.read(sysfs.SYS / "module/iommufd/parameters/allow_unsafe_interrupts")
    if not causes and unsafe in ("N", "0"):
        causes.append(
            Cause(
                "the platform does not isolate the interrupts of devices from each other",
                "no other cause was found, and iommufd.allow_unsafe_interrupts is 0",
                "turn interrupt remapping on (firmware; for QEMU's intel-iommu: intremap=on), or accept the risk: "
                "echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts",
            )
        )
    return causes


def _invalid(device: HostDevice, group: Group, fd: int) -> list[Cause]:
    causes = [
        Cause(
            "the device is open through another fd as well",
            str(holder),
            "close that one; bind takes the only one",
        )
        for holder in _others((device,), fd)
    ]
    causes += [
        Cause(
            "firmware wants addresses of this group mapped one to one",
            f"reserved region {region.start:#x}..{region.last:#x} of type direct, IOMMU group {group.id}",
            "the device cannot be given to user space, unless firmware can be told otherwise",
        )
        for region in group.reserved_regions
        if region.type == "direct"
    ]
    return causes


def _busy(group: Group, fd: int) -> list[Cause]:
    return [
        Cause("the group is in use through its legacy node", str(holder), "end that use")
        for holder in _others(group.devices, fd)
        if "/devices/" not in holder.node
    ]
