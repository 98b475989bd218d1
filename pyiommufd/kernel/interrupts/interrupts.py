"""A device's interrupts: INTx, MSI, MSI-X, errors, and the host's removal request."""

from __future__ import annotations

import contextlib
import errno
import operator
import threading
from enum import IntEnum
from typing import TYPE_CHECKING

from pyiommufd import uapi
from pyiommufd.errors import ClosedError, UnsupportedError
from pyiommufd.kernel.interrupts.interrupt import APIRQIndex, CCWIRQIndex, IRQIndex
from pyiommufd.kernel.interrupts.irq import IRQ
from pyiommufd.uapi.ioctls import File

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.interrupts.ioeventfd import IOEventFD

_KINDS: dict[int, type[IntEnum]] = {
    uapi.VFIO_DEVICE_FLAGS_PCI: IRQIndex,
    uapi.VFIO_DEVICE_FLAGS_AP: APIRQIndex,
    uapi.VFIO_DEVICE_FLAGS_CCW: CCWIRQIndex,
}


class Interrupts:
    """The interrupts of a bound device. Made by `Device.interrupts`.

    The device owns them: what is enabled is turned off, and its eventfds are closed, when the device is closed.

    Thread safety: everything here may be used from any thread.
    """

    __slots__ = ("_closed", "_device", "_ioeventfds", "_irqs", "_names")

    def __init__(self, device: Device) -> None:
        self._device = device
        self._irqs: dict[int, IRQ] = {}
        self._ioeventfds: dict[IOEventFD, None] = {}
        self._names: tuple[type[IntEnum], ...] | None = None
        self._closed = False

    def __getitem__(self, index: int) -> IRQ:
        """A type of interrupt by its number, which means what the device's bus says.

        Raises:
            ValueError, TypeError: That is no number of a type.
            IoctlError, ClosedError, ForkedError: As for `Device.info`.
        """
        index = operator.index(index)
        if not 0 <= index <= 0xFFFF_FFFF:
            raise ValueError(f"{index} is not an index of a type of interrupt")
        with self._lock:
            irq = self._irqs.get(index)
            if irq is None:
                named = next((names(index) for names in self._kind() if index in list(names)), index)
                irq = self._irqs.setdefault(index, IRQ(self, self._device, named))
            return irq

    def _kind(self) -> tuple[type[IntEnum], ...]:
        """The names of the device's types, which its flags tell; none where they are not known."""
        if self._names is None:
            flags = self._device.info().flags
            self._names = tuple(names for flag, names in _KINDS.items() if flags & flag)
        return self._names

    def _named(self, name: str) -> IRQ:
        for names in self._kind():
            if name in names.__members__:
                return self[names[name]]
        raise UnsupportedError("VFIO_DEVICE_SET_IRQS", errno.EOPNOTSUPP, f"{self._device.name}, which has no {name}")

    @property
    def intx(self) -> IRQ:
        """The line interrupt of a PCI device: one that has come is masked until `IRQ.unmask`.

        Raises:
            UnsupportedError: Devices of this kind have none.
            IoctlError, ClosedError, ForkedError: As for `Device.info`.
        """
        return self._named("INTX")

    @property
    def msi(self) -> IRQ:
        """Message signalled interrupts of a PCI device. Raises as `intx` does."""
        return self._named("MSI")

    @property
    def msix(self) -> IRQ:
        """Message signalled interrupts, extended: up to 2048, one by one. Raises as `intx` does."""
        return self._named("MSIX")

    @property
    def err(self) -> IRQ:
        """Uncorrectable errors that a PCI device has reported (AER). Raises as `intx` does."""
        return self._named("ERR")

    @property
    def req(self) -> IRQ:
        """The host's request to release the device, for an unbind or removal; see also `Device.watch_removal`.

        Until the device is closed the kernel waits, and asks again every 10 seconds. PCI devices, crypto adapters (AP)
        and channel devices (CCW) have it, each at a number of its own. Raises as `intx` does.
        """
        return self._named("REQ")

    @property
    def enabled(self) -> tuple[IRQ, ...]:
        """The types that are on."""
        return tuple(irq for irq in list(self._irqs.values()) if irq.enabled)

    @property
    def ioeventfds(self) -> tuple[IOEventFD, ...]:
        """The eventfds that write registers; see `Region.ioeventfd`."""
        return tuple(self._ioeventfds)

    # Internal

    @property
    def _lock(self) -> threading.RLock:
        """The iommufd's: see "Locks" in CONTRIBUTING.md."""
        return self._device.iommufd._lock

    def _live(self) -> File:
        """The device's file, for a caller that holds the lock, which keeps it open. Raises once a close has begun."""
        if self._closed:
            raise ClosedError(f"this {self._device._what()} is closed")
        return self._device._live()

    def _remember(self, event: IOEventFD) -> None:
        """Own an ioeventfd."""
        self._ioeventfds[event] = None

    def _forget(self, event: IOEventFD) -> None:
        """An ioeventfd has been closed."""
        self._ioeventfds.pop(event, None)

    def _close(self) -> None:
        """The device is about to be closed: close the eventfds. Those who wait get `ClosedError`."""
        if self._device.in_child:
            for irq in list(self._irqs.values()):
                irq._close_in_child()
            for event in self.ioeventfds:
                event.close()
            return
        with self._lock:
            self._closed = True
            with contextlib.ExitStack() as stack:  # all of them, also where one fails
                for irq in list(self._irqs.values()):
                    stack.callback(irq._close)
                for event in self.ioeventfds:
                    stack.callback(event.close)

    def __repr__(self) -> str:
        return f"<Interrupts of {self._device.name}: {', '.join(irq.name for irq in self.enabled) or 'none'} on>"
