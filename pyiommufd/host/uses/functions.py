"""Virtual functions of a device that are in use: they go when it loses its driver."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import Refusal
from .. import sysfs
from ..devices import HostDevice
from .folders import listed


def function_refusals(device: HostDevice) -> Iterator[Refusal]:
    """The virtual functions that a driver has, vfio's included."""
    found = []
    for link in device.sys_path.glob("virtfn*"):
        driver = sysfs.link_name(link / "driver")
        if driver is not None:
            found.append(f"{link.resolve().name} ({driver})")
    if found:
        yield Refusal(device.name, "vfs", f"virtual functions of it are in use: {listed(sorted(found))}")
