"""Why a device node could not be opened."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyiommufd.diagnose import fixes
from pyiommufd.errors import Cause, Fix
from pyiommufd.host.checks.lacks import KERNEL, no_iommufd, no_noiommu_node
from pyiommufd.host.claims.plan import claim_obstacle
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.holders import holders
from pyiommufd.host.limits import CAP_SYS_RAWIO, has_capability
from pyiommufd.host.rows import Row, Rows
from pyiommufd.host.running_kernel import has_cdevs


def open_iommufd_causes(code: int, path: str) -> tuple[Cause, ...]:
    """Why ``/dev/iommu`` could not be opened."""
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        if (lack := no_iommufd()) is None:
            return (
                Cause(
                    f"the kernel has iommufd, but there is no {path} here",
                    "/sys/class/misc/iommu is there",
                    "in a container, pass the device node in",
                ),
            )
        return (Cause(lack.summary, lack.evidence, lack.fix),)
    return _permission_causes(code, path)


def open_cdev_causes(code: int, device: HostDevice) -> tuple[Cause, ...]:
    """Why a device's node under ``/dev/vfio/devices`` could not be opened, or found."""
    if device.vfio_cdev is None:
        if device.on_vfio:
            if device.without_iommu and (lack := no_noiommu_node(device)) is not None and has_cdevs() is not False:
                return (Cause(lack.summary, lack.evidence, lack.fix),)
            return (
                Cause(
                    "this kernel has no device nodes for vfio",
                    f"{device.name} is on {device.driver}, and its vfio-dev folder has no dev file",
                    KERNEL,
                ),
            )
        return (
            Cause(
                f"{device.name} is not on a vfio driver",
                f"it is on {device.driver or 'no driver'}",
                *_claim_first(device),
            ),
        )
    if code == errno.EBUSY:
        mine = Fix("use or close that; if it is bound, it is among the devices of its IOMMUFD", "use or close that")
        return tuple(
            Cause("it is open elsewhere", str(holder), "end that use")
            if holder.own_fd is None
            else Cause("this process has it open already", str(holder), *mine)
            for holder in holders(device)
        )
    if code == errno.ENOENT:
        return (
            Cause(
                f"{device.vfio_cdev} is missing though the kernel has the device",
                str(device.sys_path / "vfio-dev"),
                "in a container, pass /dev/vfio/devices in; else see that udev or devtmpfs is at work",
            ),
        )
    if code in (errno.EPERM, errno.EACCES) and device.without_iommu and not has_capability(CAP_SYS_RAWIO):
        rawio = _RAWIO.cause(f"no IOMMU covers {device.name}, and this process does not have that capability")
        # The kernel asks for the mode first.
        return (rawio, *(_permission_causes(code, device.vfio_cdev) if code == errno.EACCES else ()))
    return _permission_causes(code, device.vfio_cdev)


def _claim_first(device: HostDevice) -> Fix:
    obstacle = claim_obstacle(device)
    return fixes.claim(device, "claim it first") if obstacle is None else Fix(obstacle, obstacle)


def _permission_causes(code: int, path: str) -> tuple[Cause, ...]:
    if code not in (errno.EACCES, errno.EPERM):
        return ()
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    evidence = f"mode {status.st_mode & 0o7777:04o}, owner {status.st_uid}, group {status.st_gid}"
    return (
        Cause(
            f"user {os.geteuid()} may not open {path}",
            evidence,
            "run as root, have a udev rule give the node to this user, or take an open fd from a process that may",
        ),
    )


_RAWIO = Row("devices without an IOMMU are for CAP_SYS_RAWIO only", "run as root, or with that capability")
NODES: Rows = {
    ("open", errno.ENOENT): (
        Row("the device is not on a vfio driver, or the kernel has no iommufd",
            "claim it: pyiommufd claim DEVICE; pyiommufd check says what the kernel lacks"),
        Row("the node is not here", "in a container, pass /dev/iommu and /dev/vfio/devices in"),
    ),
    ("open", errno.EBUSY): (Row("it is open elsewhere", "end that use: pyiommufd holders DEVICE shows it"),),
    ("open", errno.EACCES): (
        Row("this user may not open the node", "run as root, or have a udev rule give the node to this user"),
    ),
    ("open", errno.EPERM): (
        _RAWIO,
        Row("the container may not use the device", "allow it: as --device of docker and podman does"),
    ),
    ("open", errno.ENODEV): (
        Row("the device is being removed, or the module has no device for the node", "look the device up anew"),
    ),
    ("open", errno.ENXIO): (Row("no driver is behind the node", "modprobe iommufd, or vfio-pci"),),
}  # fmt: skip
"""Every reason for a node that could not be opened."""
