"""What drivers of devices that work on queues in memory have in common: registers, that memory, an interrupt."""

from __future__ import annotations

from abc import abstractmethod

from ..kernel.buffer import DMABuffer
from ..kernel.closing import Closing
from ..kernel.device import Device
from ..kernel.interrupt import Interrupt
from ..kernel.ioas import IOAS
from ..kernel.mapping import DMAMapping


class QueueDriver(Closing):
    """Drives a bound device by queues in memory. A context manager that stops it.

    It neither binds nor attaches, and leaves bus mastering as it is: that is what a test wants to choose.

    Args:
        device: The device, bound, and attached to the address space.
        ioas: Where its queues are mapped.
        size: How many bytes of memory they take.

    Attributes:
        device: The device.
    """

    def __init__(self, device: Device, ioas: IOAS, size: int) -> None:
        self.device = device
        self._registers = device.region(0).map()
        self._memory = DMABuffer(size)
        self._mapping: DMAMapping | None = None
        self._interrupts = False
        try:
            self._prepare()
            self._mapping = ioas.map(self._memory)
            self._start(self._mapping.iova)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _prepare(self) -> None:
        """What comes before its memory is mapped: `_enable_interrupt`, say."""

    @abstractmethod
    def _start(self, iova: int) -> None:
        """Have the device begin, with the memory at that iova."""

    @abstractmethod
    def _halt(self) -> None:
        """Have the device end."""

    def _enable_interrupt(self) -> Interrupt:
        """Enable MSI-X, vector 0."""
        self._interrupts = True
        (vector,) = self.device.interrupts.msix.enable()
        return vector

    def close(self) -> None:
        """Stop it, and let registers, interrupt and memory go; the device stays bound."""
        try:
            if not self._registers.closed:
                self._stop()
        finally:
            self._registers.close()
            if self._interrupts and not self.device.closed:
                self.device.interrupts.msix.disable()
            mapping, self._mapping = self._mapping, None
            if mapping is not None:
                mapping.unmap()
            self._memory.close()

    def _stop(self) -> None:
        try:
            self._halt()
        except BaseException:
            # What does not stop must not write to memory that is about to be someone else's.
            self.device.bus_master = False
            raise
