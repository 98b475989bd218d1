"""Members of an IOMMU group that are not bound: driven by the files of sysfs, and put on other drivers."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from pyiommufd import (
    Device,
    HostDevice,
)
from pyiommufd.host import drivers
from pyiommufd.testing.drivers.edu import EduDriver


class _Registers:
    """BAR 0 of a device that nobody has bound, by its file in sysfs; as much of a `Window` as `EduDriver` uses."""

    def __init__(self, host: HostDevice) -> None:
        fd = os.open(host.sys_path / "resource0", os.O_RDWR)
        try:
            self._memory = mmap.mmap(fd, 4096)
        finally:
            os.close(fd)

    def read32(self, offset: int) -> int:
        return ctypes.c_uint32.from_buffer(self._memory, offset).value

    def read64(self, offset: int) -> int:
        return ctypes.c_uint64.from_buffer(self._memory, offset).value

    def write64(self, offset: int, value: int) -> None:
        ctypes.c_uint64.from_buffer(self._memory, offset).value = value

    def close(self) -> None:
        self._memory.close()


class _UnboundDevice:
    """As much of a `Device` as `EduDriver` uses, for a device that is bound to no iommufd."""

    def __init__(self, host: HostDevice) -> None:
        self.name = host.name
        self._host = host

    @property
    def bus_master(self) -> bool:
        return self._host.sys_path.joinpath("config").read_bytes()[4] & 0x04 != 0

    def region(self, index: int) -> _UnboundDevice:
        assert index == 0
        return self

    def map(self) -> _Registers:
        return _Registers(self._host)


@contextmanager
def unbound_edu(host: HostDevice) -> Iterator[EduDriver]:
    """Drive an edu device that is not bound; memory decode and bus mastering on by its configuration space."""
    with open(host.sys_path / "config", "r+b", buffering=0) as config:
        config.seek(4)
        before = config.read(2)
        config.seek(4)
        config.write(bytes([before[0] | 0x06, before[1]]))
        config.seek(4)
        assert config.read(1)[0] & 0x06 == 0x06
        try:
            with EduDriver(cast("Device", _UnboundDevice(host))) as driver:
                yield driver
        finally:
            config.seek(4)
            config.write(before)


@contextmanager
def on_driver(host: HostDevice, driver: str | None) -> Iterator[None]:
    """A claimed device on another driver than vfio-pci, and back on it."""
    try:
        drivers.unbind(host)
        if driver is not None:
            drivers.set_driver_override(host, driver)
            drivers.bind(host, driver)
        yield
    finally:
        drivers.unbind(host)
        drivers.set_driver_override(host, "vfio-pci")
        drivers.bind(host, "vfio-pci")


def names(devices: tuple[HostDevice, ...]) -> set[str]:
    return {device.name for device in devices}
