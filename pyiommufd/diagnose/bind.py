"""Why VFIO_DEVICE_BIND_IOMMUFD was refused (Linux 7.3: drivers/vfio/device_cdev.c, drivers/iommu/iommufd/device.c)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from pyiommufd.diagnose import fixes
from pyiommufd.errors import Cause, Fix, GroupNotViableError, IoctlError, ioctl_error
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.vf_token import takes_token
from pyiommufd.host.holders import Holder, in_words
from pyiommufd.host.rows import Row, Rows, Subject, causes_found
from pyiommufd.host.running_kernel import interrupts_isolated, unsafe_interrupts_allowed
from pyiommufd.printable import listed
from pyiommufd.uapi import device_ioctls

REQUEST = "VFIO_DEVICE_BIND_IOMMUFD"

_REMAP = (
    "turn interrupt remapping on (firmware; for QEMU's intel-iommu: intremap=on), or accept the risk: "
    "echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts"
)
_NO_ISOLATION = "the platform does not isolate the interrupts of devices from each other"
_BOUND = "this fd is bound already"
_ANEW = "use what it is bound as, or close that and open the node anew"
_OPEN = "another process has the device open"
_CLOSE = "end that use, its mappings as well; bind takes the only one"
_WITHOUT_TOKEN = Fix(
    "bind without token=", "bind without VFIO_DEVICE_BIND_FLAG_TOKEN; pyiommufd run and caps without --vf-token"
)
_TOKEN = Fix(
    "bind with token=, the one that the user of the physical function has set, by its bind or by set_vf_token()",
    "give the token that the user of the physical function has set: --vf-token UUID of pyiommufd run and caps",
)
_TOKEN_OF_USERS = Fix(
    "bind with token=, the one that their users have given, or close those first",
    "give the token that their users have given, or end that use: --vf-token UUID of pyiommufd run and caps",
)
_ONE_IOMMUFD = "bind all devices of a group to one iommufd, or end that use"


def bind_error(
    code: int, device: HostDevice, fd: int, *, token: bool, owners: Mapping[int, str] | None = None
) -> IoctlError:
    """The exception for a refused bind, with what this machine shows of the reason.

    Args:
        code: The errno.
        device: What was to be bound.
        fd: The cdev's fd that it was to be bound through, which is no other user of the device.
        token: Whether a VF token was given.
        owners: The objects of this process that have devices bound, in words, by their fds.
    """
    group = device.group
    seen = causes_found(BIND.get((REQUEST, code), ()), Subject(device, group, fd, token=token, owners=owners or {}))
    causes = seen.found or seen.possible
    blockers = group.blockers if group is not None and code == errno.EPERM else ()
    if blockers:
        return GroupNotViableError(REQUEST, code, device.name, causes, blockers=blockers)
    return ioctl_error(REQUEST, code, device.name, causes)


def _unsafe_drivers(subject: Subject) -> tuple[Cause, ...]:
    if subject.group is None:
        return ()
    members = ", ".join(member.name for member in subject.members)
    return tuple(
        Cause(
            f"{member.name} is in the same IOMMU group and on the host driver {member.driver}",
            f"IOMMU group {subject.group.id}: {members}",
            *fixes.claim(subject.device, "claim the group"),
        )
        for member in subject.group.blockers
    )


def _asks_for_isolation(subject: Subject) -> bool:
    """Whether the kernel asks for isolated interrupts: only of a group of an IOMMU's."""
    return subject.group is not None and not subject.group.is_made_by_vfio


def _interrupts_seen(subject: Subject) -> tuple[Cause, ...]:
    if (
        not _asks_for_isolation(subject)
        or unsafe_interrupts_allowed() is not False
        or interrupts_isolated() is not False
    ):
        return ()
    seen = "/proc/interrupts has no remapped controller, and iommufd.allow_unsafe_interrupts is 0"
    return (Cause(_NO_ISOLATION, seen, _REMAP),)


def _seen_at_once(subject: Subject) -> tuple[Cause, ...]:
    # The kernel asks for the interrupts before it looks at the group.
    return _interrupts_seen(subject) + _unsafe_drivers(subject)


def _interrupts_by_elimination(subject: Subject) -> tuple[Cause, ...] | None:
    allowed, isolated = unsafe_interrupts_allowed(), interrupts_isolated()
    group = subject.group
    if group is None or not _asks_for_isolation(subject) or allowed or (allowed is False and isolated is False):
        return ()
    if subject.fd is None or allowed is None:
        # What /proc/interrupts shows is all that iommufd asks of an IOMMU of Intel's, and not of AMD's.
        return () if isolated and (subject.device.iommu or "").startswith("dmar") else None
    if group.blockers or subject.others(*subject.members):
        return ()
    seen = "no other cause was found, and iommufd.allow_unsafe_interrupts is 0"
    return (Cause(_NO_ISOLATION, seen, _REMAP),)


def _is_bound(fd: int) -> bool:
    """Whether an fd of this process is that of a device that is bound: the kernel answers this to no other."""
    try:
        device_ioctls.device_info(fd)
    except IoctlError:
        return False
    return True


def _other_owner(subject: Subject) -> tuple[Cause, ...] | None:
    return subject.causes(map(_owned_by, subject.others(*subject.members)))


def _owned_by(holder: Holder) -> Cause:
    if holder.own_fd is not None and _is_bound(holder.own_fd):
        fix = f"{_ONE_IOMMUFD}: that whose devices have fd {holder.own_fd}"
        return Cause("the group is owned by another iommufd of this process", str(holder), fix)
    return Cause("the group may be owned by another iommufd, or through its legacy node", str(holder), _ONE_IOMMUFD)


def _bound_already(subject: Subject) -> tuple[Cause, ...] | None:
    if subject.fd is None:
        return None
    if not _is_bound(subject.fd):
        return ()
    return (Cause(_BOUND, f"fd {subject.fd} answers VFIO_DEVICE_GET_INFO", _ANEW),)


def _open_elsewhere(subject: Subject) -> tuple[Cause, ...] | None:
    # The kernel counts those that are bound. Of another process's fd this cannot be seen.
    others = [one for one in subject.others(subject.device) if one.own_fd is None or _is_bound(one.own_fd)]
    own = [one for one in others if one.pid == os.getpid()]
    return subject.causes(
        [
            *(Cause("this process has the device bound", text, *_of_own(own, subject)) for text in in_words(own)),
            *(Cause(_OPEN, text, _CLOSE) for text in in_words(one for one in others if one not in own)),
        ]
    )


def _of_own(own: Sequence[Holder], subject: Subject) -> Fix:
    fds = [one.own_fd for one in own if one.own_fd is not None]
    objects = [subject.owners[fd] for fd in fds if fd in subject.owners]
    if not fds:
        return Fix("close the windows of its regions first", "unmap its regions first")
    use = f"take fd {fds[0]} over by Device.from_fd(), or close it first"
    if objects:
        use = f"use {objects[0]}, or close() {'it' if len(objects) == 1 else f'all {len(objects)} Devices of it'} first"
    return Fix(use, f"use fd {fds[0]}, or close it first")


def _firmware(subject: Subject) -> tuple[Cause, ...]:
    group = subject.group
    return tuple(
        Cause(
            "firmware wants addresses of this group mapped one to one",
            f"reserved region {region.start:#x}..{region.last:#x} of type direct, group {subject.device.group_id}",
            "the device cannot be given to user space, unless firmware can be told otherwise",
        )
        for region in (group.reserved_regions if group is not None else ())
        if region.type == "direct"
    )


def _legacy(subject: Subject) -> tuple[Cause, ...] | None:
    return subject.causes(
        Cause("the group is in use through its legacy node", str(holder), "end that use")
        for holder in subject.others(*subject.members)
        if "/devices/" not in holder.node
    )


def _token_of_no_use(subject: Subject) -> tuple[Cause, ...] | None:
    device = subject.device
    if subject.token is False:
        return ()
    if subject.token is None or takes_token(device):
        return None
    physical = device.physical_function
    seen = f"{device} has no SR-IOV"
    if physical is not None:
        seen = f"{device} is a virtual function of {physical}, which is on {physical.driver or 'no driver'}"
    return (Cause("the device takes no VF token", seen, *_WITHOUT_TOKEN),)


def _token_of_its_physical_function(subject: Subject) -> tuple[Cause, ...]:
    physical = subject.device.physical_function
    if physical is None:
        return ()
    users = subject.others(physical)
    summary = f"the VF token is {_missing_or_wrong(subject)}: its physical function {physical} is on {physical.driver}"
    if users:
        return (Cause(summary, "; ".join(map(str, users)), *_TOKEN),)
    return (Cause(summary, f"nobody is seen to hold {physical}", *fixes.set_token(physical.name)),)


def _token_of_its_virtual_functions(subject: Subject) -> tuple[Cause, ...]:
    functions = subject.device.virtual_functions
    if not functions:
        return ()
    summary = f"the VF token is {_missing_or_wrong(subject)}: virtual functions of the device are in use"
    seen = "; ".join(map(str, subject.others(*functions))) or f"it has {listed(functions)}"
    return (Cause(summary, seen, *_TOKEN_OF_USERS),)


def _missing_or_wrong(subject: Subject) -> str:
    return {None: "missing or wrong", True: "wrong", False: "missing"}[subject.token]


BIND: Rows = {
    (REQUEST, errno.EPERM): (
        Row("a member of the IOMMU group is on a host driver", fixes.CLAIM_GROUP,
            _seen_at_once),
        Row("the group is owned by another iommufd", _ONE_IOMMUFD, _other_owner),
        Row(_NO_ISOLATION, _REMAP, _interrupts_by_elimination),
    ),
    (REQUEST, errno.EINVAL): (
        Row(_BOUND, _ANEW, _bound_already),
        Row("the device is bound already, through another fd", _CLOSE, _open_elsewhere),
        Row("firmware wants addresses of the group mapped one to one",
            "the device cannot be given to user space, unless firmware can be told otherwise", _firmware),
        Row("a VF token was given for a device without SR-IOV, or for a VF whose PF is on no vfio driver; or to a "
            "kernel from before such tokens", _WITHOUT_TOKEN, _token_of_no_use),
        Row("the fd came from the legacy group interface", "open the device's node below /dev/vfio/devices"),
    ),
    (REQUEST, errno.EBUSY): (
        Row("the group is in use through its legacy node", "end that use", _legacy),
        Row("a driver in the kernel uses the group's page tables", "end the use of shared virtual addressing (PASIDs)"),
        Row("a reset of the device is under way", "try again"),
    ),
    (REQUEST, errno.EACCES): (
        Row("the VF token is missing or wrong: its physical function is on a vfio driver", _TOKEN,
            _token_of_its_physical_function),
        Row("the VF token is missing or wrong: virtual functions of the device are in use", _TOKEN_OF_USERS,
            _token_of_its_virtual_functions),
    ),
    (REQUEST, errno.ENODEV): (Row("the device is being removed, or its driver unloaded", "look the device up anew"),),
    (REQUEST, errno.EAGAIN): (Row("the device could not be reset at once: its bus is in use", "try again"),),
    (REQUEST, errno.EBADF): (Row("the iommufd's fd is closed", "give the fd of an open /dev/iommu"),),
    (REQUEST, errno.EBADFD): (Row("the fd is not that of an iommufd", "give the fd of an open /dev/iommu"),),
}  # fmt: skip
"""Every reason for a refused bind."""
