"""Why a reset was refused (Linux 7.3: drivers/vfio/pci/vfio_pci_core.c, drivers/pci/pci.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyiommufd.diagnose import fixes
from pyiommufd.errors import Cause, DeviceNotFoundError, Fix, IoctlError, ioctl_error
from pyiommufd.host.claims.plan import claim_obstacle
from pyiommufd.host.discovery.devices import HostDevice, find_device
from pyiommufd.host.discovery.reset import reset_methods
from pyiommufd.host.holders import holders
from pyiommufd.printable import listed

INFO_REQUEST = "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"
_ALONE = Fix("use reset()", "use VFIO_DEVICE_RESET")
_NO_WAY = "only a reset of the machine resets it: stop it through its registers"


def reset_error(code: int, device: HostDevice, together: Sequence[str]) -> IoctlError:
    """The exception for a refused VFIO_DEVICE_RESET.

    Args:
        code: The errno.
        device: What was to be reset.
        together: The addresses of the devices that a hot reset would reset; none: there can be no hot reset.
    """
    causes: tuple[Cause, ...] = ()
    methods = reset_methods(device)
    fix = Fix(_NO_WAY, _NO_WAY)
    if together:
        all_on_bus = f"resets all that is on its bus: {', '.join(together)}"
        fix = Fix(f"hot_reset() {all_on_bus}", f"VFIO_DEVICE_PCI_HOT_RESET {all_on_bus}")
    if code in (errno.EINVAL, errno.ENOTTY) and not methods:
        causes = (
            Cause(
                "the device has no way to be reset alone",
                f"{device.sys_path / 'reset_method'} names none",
                *fix,
            ),
        )
    elif code in (errno.EINVAL, errno.ENOTTY):
        others = [name for name in together if name != device.name] if methods == ("bus",) else []
        causes = (
            Cause(
                f"the device's methods of a reset ({', '.join(methods)}) do not work",
                f"its bus has other devices: {', '.join(others)}" if others else "the kernel tries when it is opened",
                *fix,
            ),
        )
    elif code == errno.EAGAIN:
        causes = (Cause("something else in the kernel has the device locked", "", "try again"),)
    return ioctl_error("VFIO_DEVICE_RESET", code, device.name, causes)


def hot_reset_error(code: int, device: HostDevice, not_owned: Sequence[str], request: str) -> IoctlError:
    """The exception for a refused hot reset.

    Args:
        code: The errno.
        device: What it was asked of.
        not_owned: The addresses of devices that would be reset too, and are not owned by the iommufd.
        request: The ioctl.
    """
    causes: tuple[Cause, ...] = ()
    if code == errno.EINVAL:
        functions = [one.name for one in device.virtual_functions if one.name in not_owned]
        causes = tuple(_foreign(name) for name in not_owned if name not in functions)
        if functions:
            only, away = "reset the device alone", "take its virtual functions away first"
            causes += (
                Cause(
                    "its virtual functions would be reset too, and none of them is ever owned for this",
                    f"it has {listed(functions)}",
                    f"{only}: reset(); or {away}: set_vfs({device.name!r}, 0)",
                    f"{only}, by VFIO_DEVICE_RESET; or {away}: pyiommufd vfs {device.name} 0",
                ),
            )
    elif code == errno.ENODEV:
        has = f"the device has {', '.join(reset_methods(device))}"
        alone = Fix(f"use reset(): {has}", f"use VFIO_DEVICE_RESET: {has}")
        causes = (
            Cause(
                "neither the bus nor the slot that the device is on can be reset",
                f"{device.name} is on {device.sys_path.parent.name}",
                *(alone if reset_methods(device) else (_NO_WAY,)),
            ),
        )
    elif code == errno.ENOTTY and request == INFO_REQUEST:
        causes = (
            Cause(
                "the device's driver has no hot reset, which is for the devices of a PCI bus",
                f"{device.name} is on {device.driver}",
                *_ALONE,
            ),
        )
    elif code == errno.ENOTTY:
        causes = (
            Cause(
                "the reset was done, but the device or its link did not come back in time",
                "dmesg says which",
                "if the device answers, keep using it; QEMU's root ports report this for working devices",
            ),
        )
    elif code == errno.EBUSY:
        causes = (Cause("another thread is using the registers of a device that is to be reset", "", "try again"),)
    return ioctl_error(request, code, device.name, causes)


def _foreign(name: str) -> Cause:
    summary = f"{name} would be reset too, and is not bound to this iommufd"
    try:
        other = find_device(name)
    except DeviceNotFoundError:
        return Cause(summary, "it has gone since", "try again")
    if not other.on_vfio:
        where = f"it is on the host driver {other.driver}" if other.driver else "it is on no driver"
        if obstacle := claim_obstacle(other):
            return Cause(summary, where, obstacle)
        return Cause(summary, where, *fixes.claim(other, "claim it and bind it to the same iommufd"))
    users = holders(other)
    evidence = "; ".join(map(str, users)) or f"it is on {other.driver}, and nobody holds it"
    return Cause(summary, evidence, "bind it to the same iommufd")
