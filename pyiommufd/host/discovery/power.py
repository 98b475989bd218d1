"""Whether a device sleeps, as sysfs says."""

from __future__ import annotations

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice


def runtime_status(device: HostDevice) -> str:
    """What the kernel's runtime power management says of it: active, suspending, suspended, …; empty: nothing."""
    return (sysfs.read(device.sys_path / "power" / "runtime_status") or "").strip()


def power_state(device: HostDevice) -> str:
    """The power state of a PCI device: D0, D3hot, …; empty where it is no PCI device."""
    return (sysfs.read(device.sys_path / "power_state") or "").strip()
