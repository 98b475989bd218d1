"""How the kernel resets a PCI device: the methods of its sysfs folder."""

from __future__ import annotations

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice


def reset_methods(device: HostDevice) -> tuple[str, ...]:
    """The methods that the kernel tries, in this order, such as ``flr``, ``pm`` and ``bus``; none: it cannot."""
    return tuple((sysfs.read(device.sys_path / "reset_method") or "").split())


def set_reset_methods(device: HostDevice, methods: tuple[str, ...]) -> None:
    """Choose the methods that the kernel tries, and their order.

    Raises:
        OSError: EINVAL: the device does not have one of them; EACCES: only root may.
    """
    sysfs.write(device.sys_path / "reset_method", f"{' '.join(methods)}\n")
