"""A vfio cdev that is open and not bound."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self

from pyiommufd import diagnose
from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice, as_device, from_sys_path
from pyiommufd.kernel.handle import Handle, character_device, check_unowned
from pyiommufd.uapi import ioctls


class DeviceFile(Handle):
    """An open ``/dev/vfio/devices/vfioX`` that is not bound: what `IOMMUFD.bind` takes, or a VMM.

    Before the bind the kernel answers nothing but the bind, and the device cannot leave its vfio driver.

    Thread safety: everything here may be used from any thread.

    Args:
        target: The device: a `HostDevice`, a name as for `find_device`, or the path of its node. Looked up afresh.

    Raises:
        DeviceNotFoundError: There is no such device.
        IoctlError: It is not on a vfio driver, the kernel has no cdevs, or the node may not be opened.
        TypeError: The target is none of these.
    """

    __slots__ = ("_device", "_fd_shared")

    def __init__(self, target: HostDevice | str | Path) -> None:
        device = as_device(target)
        if device.vfio_cdev is None:
            raise ioctl_error("open", errno.ENOENT, device.name, diagnose.open_cdev_causes(errno.ENOENT, device))
        super().__init__()
        self._device = device
        self._fd_shared = False  # whether others have its fd, who could attach the device once bound
        try:
            self._open_with(ioctls.file_open, device.vfio_cdev, os.O_RDWR)
        except IoctlError as error:
            code = error.errno or 0
            raise ioctl_error("open", code, device.vfio_cdev, diagnose.open_cdev_causes(code, device)) from None

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over an fd that another process or part of the program has opened.

        The fd is this object's from then on, and is closed with it. Where this fails it stays the caller's.

        Raises:
            ValueError, TypeError: It is not the fd of a vfio cdev; or it is that of a living object of this process, as
                ``fileno`` returns it: give a copy, ``os.dup(fd)``.
            IoctlError: It is not open.
        """
        fd, device = device_of_fd(fd)
        self = cls.__new__(cls)
        Handle.__init__(self)
        self._device = device
        self._fd_shared = True
        self._file.fd = fd
        return self

    def fileno(self) -> int:
        """The file descriptor. Whoever has it can attach the device that it becomes: see `IOMMUFD.shared`.

        Raises:
            ClosedError: It has been closed, or bound.
            ForkedError: This is a forked child.
        """
        self._fd_shared = True
        return super().fileno()

    def _what(self) -> str:
        return f"{type(self).__name__} {self.name}"

    @property
    def name(self) -> str:
        """The name of the device on its bus."""
        return self._device.name

    @property
    def device(self) -> HostDevice:
        """The device as it was when the file was opened."""
        return self._device

    def __repr__(self) -> str:
        return f"<DeviceFile {self._device.name}{' closed' if self.closed else ''}>"


def device_of_fd(fd: int) -> tuple[int, HostDevice]:
    """An fd's number and its device, of the fd of a vfio cdev that no object of this process owns.

    Raises:
        ValueError, TypeError: It is the fd of something else, or an object's.
        IoctlError: It is not open.
    """
    fd, number = character_device(fd)
    node = sysfs.SYS / "dev/char" / number
    if not number or sysfs.link_name(node / "subsystem") != "vfio-dev":
        raise ValueError(f"fd {fd} is not that of a vfio cdev (/dev/vfio/devices/vfioX)")
    check_unowned(fd)
    return fd, from_sys_path((node / "device").resolve())
