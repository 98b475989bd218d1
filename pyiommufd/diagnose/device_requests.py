"""Why a request to a bound device was refused (Linux 7.3: drivers/vfio)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import IntEnum

from pyiommufd.errors import Cause, Fix, IoctlError, ioctl_error
from pyiommufd.host import sysfs
from pyiommufd.host.rows import Row, Rows, Subject

_RESET, _HOT, _HOT_INFO = "VFIO_DEVICE_RESET", "VFIO_DEVICE_PCI_HOT_RESET", "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"
_IOEVENTFD = "VFIO_DEVICE_IOEVENTFD"
_HOT_OR_REBOOT = Fix(
    "hot_reset(), where its bus is behind a bridge; else reboot",
    "VFIO_DEVICE_PCI_HOT_RESET, where its bus is behind a bridge; else reboot",
)
_NO_BUS_RESET = "neither its slot nor its bus can be reset"
_IRQS, _FEATURE = "VFIO_DEVICE_SET_IRQS", "VFIO_DEVICE_FEATURE"
_PLANE, _DMA_BUF_OF_PLANE = "VFIO_DEVICE_QUERY_GFX_PLANE", "VFIO_DEVICE_GET_GFX_DMABUF"


def _no_reset(subject: Subject) -> tuple[Cause, ...]:
    methods = sysfs.read(subject.device.sys_path / "reset_method")
    if methods:
        return ()
    summary = f"{subject.device.name} has no way to be reset"
    return (Cause(summary, "its reset_method is missing or empty", *_HOT_OR_REBOOT),)


def _methods(subject: Subject) -> tuple[Cause, ...]:
    methods = sysfs.read(subject.device.sys_path / "reset_method")
    seen = f"{subject.device.name} is on {subject.device.sys_path.parent.name}"
    if not methods:
        return (Cause(_NO_BUS_RESET, seen, "reboot: it has no reset method of its own"),)
    has = f"it has {', '.join(methods.split())}"
    return (Cause(_NO_BUS_RESET, seen, f"reset(): {has}", f"VFIO_DEVICE_RESET: {has}"),)


_NOT_BOUND = Row(
    "the device is not bound yet: until then the kernel answers nothing else",
    Fix("IOMMUFD.bind() it first", "bind it first"),
)
_BY_ITSELF = Fix(
    "reset(), if it has a method of its own; else reboot",
    "VFIO_DEVICE_RESET, if it has a method of its own; else reboot",
)
_NOT_BY_BUS = Row(_NO_BUS_RESET, _BY_ITSELF, _methods)

IN_LOW_POWER = Row(
    "low power was to be entered, and has been already",
    Fix("low_power.exit() first", "VFIO_DEVICE_FEATURE_LOW_POWER_EXIT first"),
)
_INFO = Fix("see its info()", "see its VFIO_DEVICE_GET_INFO")

DEVICE: Rows = {
    ("VFIO_DEVICE_GET_INFO", errno.EINVAL): (_NOT_BOUND,),
    ("VFIO_DEVICE_GET_REGION_INFO", errno.EINVAL): (_NOT_BOUND, Row("there is no such region", _INFO)),
    ("VFIO_DEVICE_GET_IRQ_INFO", errno.EINVAL): (_NOT_BOUND, Row("there is no such interrupt", _INFO)),
    (_RESET, errno.EINVAL): (Row("the device has no way to be reset", _HOT_OR_REBOOT, _no_reset),),
    (_HOT, errno.EINVAL): (
        Row("a device that would be reset too is not owned by this iommufd, or on no vfio driver",
            "claim and bind all of them: those without a driver count"),
    ),
    (_HOT, errno.ENODEV): (_NOT_BY_BUS,),
    (_HOT, errno.EBUSY): (Row("another reset is under way", "try again"),),
    (_HOT_INFO, errno.ENOSPC): (Row("there are more devices than room was given for", "ask again with that count"),),
    (_HOT_INFO, errno.EAGAIN): (Row("devices came or went meanwhile", "ask again"),),
    (_HOT_INFO, errno.ENODEV): (_NOT_BY_BUS,),
    (_IRQS, errno.EINVAL): (
        Row("interrupts of another type are on", "turn those off first"),
        Row("more were asked for than the type has", "ask for no more than its count"),
    ),
    (_IOEVENTFD, errno.EEXIST): (
        Row("an eventfd writes that value there already", "signal that one, or close it first"),
    ),
    (_IOEVENTFD, errno.EINVAL): (
        Row("the register is in no BAR", Fix("write to it yourself: Region.write()", "write to it yourself")),
        Row("the register is in the MSI-X table",
            Fix("enable(), resize() and open() of device.interrupts.msix write that",
                "VFIO_DEVICE_SET_IRQS writes that")),
    ),
    (_IOEVENTFD, errno.ENOSPC): (Row("the device has as many as the kernel allows", "close one"),),
    (_PLANE, errno.ENOTTY): (Row("the device's driver shows no display", "do without"),),
    (_PLANE, errno.EINVAL): (
        Row("the driver has the pixels in another place, or no such plane", "probe where it has them"),
    ),
    (_PLANE, errno.ENOMEM): (
        Row("the driver has no memory for it, or it is mbochs, at the first query of each mode", "ask again"),
    ),
    (_DMA_BUF_OF_PLANE, errno.ENOENT): (
        Row("the device has no such dma-buf any more: its mode has changed", "query the plane anew"),
    ),
    (_FEATURE, errno.ENOTTY): (Row("the device's driver does not have the feature", "do without"),),
    (_FEATURE, errno.EINVAL): (
        Row("the feature does not do what was asked of it (get, set or probe), or not for this device", "do without"),
        Row("a migration state that the device cannot go to from the one it is in, or out of RESUMING without all data",
            Fix("migration.path() tells the way; reset() leads out of RESUMING",
                "take a state on the way first; VFIO_DEVICE_RESET leads out of RESUMING")),
        IN_LOW_POWER,
        Row("a dma-buf was asked for of other than whole pages of a BAR of memory", "ask for whole pages"),
    ),
    (_FEATURE, errno.ENODEV): (
        Row("a dma-buf was asked for of what is no BAR, or a BAR that another driver has claimed",
            "see /proc/iomem for who has it"),
    ),
}  # fmt: skip
"""Every reason for a refused reset, interrupt or feature."""


def no_region_error(device: str, index: int, there: Iterable[int]) -> IoctlError:
    """The exception for a region that a bound device does not have.

    Args:
        device: Its name.
        index: The number that was asked for.
        there: Those of the regions that it has.
    """
    return ioctl_error("VFIO_DEVICE_GET_REGION_INFO", errno.EINVAL, device, (no_region(device, index, there),))


def bytes_error(request: str, code: int, target: str, *, decodes: bool | None) -> IoctlError:
    """The exception for a refused pread or pwrite of a region's bytes.

    Args:
        request: Which of the two.
        code: The errno.
        target: The region.
        decodes: Whether the device decodes accesses to its memory; None: it is no PCI device, or does not say.
    """
    causes: tuple[Cause, ...] = ()
    if code == errno.EIO and decodes is False:
        seen = "the command register's Memory Space Enable is 0"
        causes = (
            Cause(
                "the device's memory decode is off",
                seen,
                "set its memory_decode to True",
                "turn it on in that register",
            ),
        )
    elif code == errno.EIO:
        causes = (Cause("the device did not answer: it sleeps or is gone"),)
    elif code == errno.EINVAL:
        causes = (Cause("the region does not allow that, or not there", "", "see its flags: READ, WRITE"),)
    return ioctl_error(request, code, target, causes)


def no_region(device: str, index: int, there: Iterable[int]) -> Cause:
    """What is wrong with a region that a bound device does not have; as for `no_region_error`."""
    return _nothing_there(f"region {index}", device, there, "take one of its regions")


def no_interrupt_error(device: str, name: str, there: Iterable[int]) -> IoctlError:
    """The exception for a type of interrupt that a bound device does not have, likewise."""
    cause = _nothing_there(f"interrupt of the type {name}", device, there, "take one of those")
    return ioctl_error("VFIO_DEVICE_GET_IRQ_INFO", errno.EINVAL, device, (cause,))


def _nothing_there(what: str, device: str, there: Iterable[int], fix: str) -> Cause:
    names = (f"{int(one)} ({one.name})" if isinstance(one, IntEnum) else str(one) for one in there)
    return Cause(f"{device} has no {what}", f"it has {', '.join(names) or 'none'}", fix)
