"""Why VFIO_DEVICE_SET_IRQS or VFIO_DEVICE_IOEVENTFD was refused (Linux 7.3: vfio_pci_intrs.c, vfio_pci_rdwr.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyiommufd.errors import Cause, IoctlError, ioctl_error

REQUEST = "VFIO_DEVICE_SET_IRQS"
_EXCLUSIVE = ("INTX", "MSI", "MSIX")


def set_irqs_error(code: int, target: str, name: str, enabled: Sequence[str]) -> IoctlError:
    """The exception for interrupts that could not be enabled.

    Args:
        code: The errno.
        target: What was to be enabled, in words.
        name: The name of its type, such as ``MSIX``.
        enabled: The names of the device's types that are on.
    """
    causes: tuple[Cause, ...] = ()
    others = [one for one in enabled if one in _EXCLUSIVE]
    if code == errno.EINVAL and name in _EXCLUSIVE and others:
        causes = (
            Cause(
                f"the device's {others[0]} is on, and of {', '.join(_EXCLUSIVE)} only one can be",
                f"{others[0]} was enabled by this process",
                f"disable it first: device.interrupts.{others[0].lower()}.disable()",
                "disable it first: VFIO_DEVICE_SET_IRQS",
            ),
        )
    elif code == errno.ENODEV and name == "INTX":
        causes = (Cause("the device's INTx pin is not connected to an interrupt controller", "", "use MSI or MSI-X"),)
    elif code == errno.EBUSY and name == "INTX":
        causes = (
            Cause(
                "the line is shared with another device, and this one cannot mask its interrupt by itself",
                "the kernel wants the line for the device alone (no DisINTx in its command register)",
                "use MSI or MSI-X, or free the other device's driver; /proc/interrupts shows the line",
            ),
        )
    return ioctl_error(REQUEST, code, target, causes)


def ioeventfd_error(code: int, target: str, same: str = "") -> IoctlError:
    """The exception for an ioeventfd that could not be registered.

    Args:
        code: The errno.
        target: What was to be written and where, with the device, in words.
        same: The one of this process that writes the same there.
    """
    causes: tuple[Cause, ...] = ()
    if code == errno.EEXIST:
        causes = (
            Cause(
                "an eventfd writes that value there already, and the kernel takes each write once",
                f"this process has {same}" if same else "",
                "signal that one, or close it first",
            ),
        )
    return ioctl_error("VFIO_DEVICE_IOEVENTFD", code, target, causes)
