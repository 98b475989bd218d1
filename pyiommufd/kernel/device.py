"""A device bound to an iommufd."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .. import uapi
from ..errors import CloseError, IoctlError, UnsupportedError
from ..host.devices import HostDevice
from ..uapi import ioctls
from .attachable import Attachable
from .attachment import DMAChange, GroupState
from .region import Region
from .window import Window

if TYPE_CHECKING:
    from .device_file import DeviceFile
    from .iommufd import IOMMUFD

_COMMAND = 0x04  # PCI Local Bus Specification 3.0, 6.2.2
_COMMAND_MASTER = 0x0004


class Device(Attachable):
    """A device bound to an iommufd. Made by `IOMMUFD.bind`; bound until it is closed.

    While it is bound and no member of its group is attached, no member can do DMA.

    Thread safety: everything here may be used from any thread.

    Attributes:
        id: Its id within the iommufd.
        bind_change: Whose DMA the bind has changed: blocked it, for all members of the group, if it was the
            group's first.
    """

    __slots__ = ("_windows",)

    def __init__(
        self,
        iommufd: IOMMUFD,
        device: HostDevice,
        device_id: int,
        state: GroupState,
        change: DMAChange,
    ) -> None:
        super().__init__(iommufd, device, device_id, state, change)  # the fd comes by take_fd
        self._windows: dict[Window, None] = {}

    def take_fd(self, file: DeviceFile) -> None:
        """Own the fd of a file that has been bound. One step: no signal handler can run between the two."""
        self._fd, file._fd = file._fd, None

    # Registers

    def region(self, index: int) -> Region:
        """A region by its number; for PCI 0 to 5 are the BARs.

        Raises:
            IoctlError: EINVAL: the device has no region of that number.
            ValueError, TypeError: That is no number of a region.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        return Region(self, index)

    @property
    def config(self) -> Region:
        """The PCI configuration space.

        Raises:
            UnsupportedError: It is not a PCI device.
            IoctlError, ClosedError, ForkedError: As for `region`.
        """
        if not ioctls.device_info(self.fileno())[0] & uapi.VFIO_DEVICE_FLAGS_PCI:
            raise UnsupportedError(
                "VFIO_DEVICE_GET_REGION_INFO", errno.EOPNOTSUPP, f"{self.name}, which is not a PCI device"
            )
        return Region(self, uapi.VFIO_PCI_CONFIG_REGION_INDEX)

    @property
    def bus_master(self) -> bool:
        """Whether the device may start DMA (the PCI command register's Bus Master Enable).

        Every bind clears it. While it is off nothing does DMA, whatever is attached.

        Raises:
            UnsupportedError: It is not a PCI device.
            IoctlError, ClosedError, ForkedError: As for `region`.
        """
        return bool(int.from_bytes(self.config.read(_COMMAND, 2), "little") & _COMMAND_MASTER)

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        config = self.config
        command = int.from_bytes(config.read(_COMMAND, 2), "little")
        command = command | _COMMAND_MASTER if on else command & ~_COMMAND_MASTER
        config.write(_COMMAND, command.to_bytes(2, "little"))

    # The end

    def remember_window(self, window: Window) -> None:
        """Own a window: it keeps the device bound, so it has to go first."""
        self._windows[window] = None

    def forget_window(self, window: Window) -> None:
        """A window has been closed."""
        self._windows.pop(window, None)

    def close(self) -> None:
        """Unbind: close the windows and the cdev, which detaches. Does nothing the second time.

        When the last bound device of the group is closed, the kernel's DMA API owns the group again and host
        drivers can take its members. In a forked child only the child's copy of the fd is closed.

        Raises:
            CloseError: Something could not be released; the rest has been.
        """
        if self.closed:
            return
        if self.in_child:
            self._close_fd()
            return
        errors: list[BaseException] = []
        with self._iommufd.lock:
            for window in list(self._windows):
                try:
                    window.close()
                except IoctlError as error:
                    errors.append(error)
            try:
                self._close_fd()
            except OSError as error:
                errors.append(error)
            finally:
                # Also where a signal handler raised: the fd is gone either way.
                for pasid in list(self._state.attachments):
                    self._state.remove(self, pasid)
                self._iommufd.forget(self)
        if errors:
            raise CloseError(f"{self.name} was closed with errors:", tuple(errors))

    def mark_forked(self) -> None:
        """This process is a forked child: the windows are its parent's, too."""
        super().mark_forked()
        for window in self._windows:
            window.mark_forked()

    def __del__(self) -> None:
        # Nobody could close the windows any more, and one that is left keeps the device bound.
        if getattr(self, "_fd", None) is not None and not self.in_child:
            for window in list(getattr(self, "_windows", ())):
                window.close()
        super().__del__()

    def __repr__(self) -> str:
        return f"<Device {self.id} {self._device.name}{' closed' if self.closed else ''}>"
