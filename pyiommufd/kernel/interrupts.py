"""A device's interrupts: INTx, MSI, MSI-X, errors, and the host's wish to have the device back."""

from __future__ import annotations

import contextlib
import operator
import threading
from typing import TYPE_CHECKING

from ..errors import ClosedError
from ..uapi.ioctls import File
from .interrupt import IRQIndex
from .irq import IRQ

if TYPE_CHECKING:
    from .device import Device


class Interrupts:
    """The interrupts of a bound device. Made by `Device.interrupts`.

    The device owns them: what is enabled is turned off, and its eventfds are closed, when the device is closed.

    Thread safety: everything here may be used from any thread.

    Attributes:
        lock: Held while a type is turned on or off.
    """

    __slots__ = ("_closed", "_device", "_irqs", "lock")

    def __init__(self, device: Device) -> None:
        self._device = device
        self._irqs: dict[int, IRQ] = {}
        self._closed = False
        self.lock = threading.RLock()

    def __getitem__(self, index: int) -> IRQ:
        """A type of interrupt by its number, which means what the device's bus says.

        Raises:
            ValueError, TypeError: That is no number of a type.
        """
        index = operator.index(index)
        if not 0 <= index <= 0xFFFF_FFFF:
            raise ValueError(f"{index} is no index of a type of interrupt")
        with self.lock:
            named = IRQIndex(index) if index in IRQIndex.__members__.values() else index
            return self._irqs.setdefault(index, IRQ(self, self._device, named))

    @property
    def intx(self) -> IRQ:
        """The line interrupt: one that has come is masked until `IRQ.unmask`."""
        return self[IRQIndex.INTX]

    @property
    def msi(self) -> IRQ:
        """Message signalled interrupts."""
        return self[IRQIndex.MSI]

    @property
    def msix(self) -> IRQ:
        """Message signalled interrupts, extended: up to 2048, one by one."""
        return self[IRQIndex.MSIX]

    @property
    def err(self) -> IRQ:
        """Uncorrectable errors that the device has reported (AER)."""
        return self[IRQIndex.ERR]

    @property
    def req(self) -> IRQ:
        """The host wants the device back, for its unbind or removal; see also `Device.watch_removal`.

        Until the device is closed the kernel waits, and asks again every 10 seconds.
        """
        return self[IRQIndex.REQ]

    @property
    def enabled(self) -> tuple[IRQ, ...]:
        """The types that are on."""
        return tuple(irq for irq in self._irqs.values() if irq.enabled)

    def fileno(self) -> File:
        """The device's fd, for who holds the lock: it stays open meanwhile.

        Raises:
            ClosedError, ForkedError: The device is closed, or about to be, or belongs to the parent process.
        """
        if self._closed:
            raise ClosedError(f"this {type(self._device).__name__} is closed")
        return self._device._live()

    def close(self) -> None:
        """The device is about to be closed: close the eventfds. Those who wait get `ClosedError`."""
        if self._device.in_child:
            for irq in self._irqs.values():
                irq.close_in_child()
            return
        with self.lock:
            self._closed = True
            with contextlib.ExitStack() as stack:  # all of them, also where one fails
                for irq in self._irqs.values():
                    stack.callback(irq.close)

    def __repr__(self) -> str:
        return f"<Interrupts of {self._device.name}>"
