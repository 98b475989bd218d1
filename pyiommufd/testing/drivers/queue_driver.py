"""What drivers of devices that work on queues in memory have in common: registers, that memory, an interrupt."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable

from pyiommufd.closing import Closing
from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.interrupts.interrupt import Interrupt
from pyiommufd.kernel.memory.buffer import DMABuffer
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.kernel.memory.mapping import DMAMapping
from pyiommufd.kernel.window import Window


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

    _seconds = 10.0
    """How long the device may take for what it is told."""

    def __init__(self, device: Device, ioas: IOAS, size: int) -> None:
        self.device = device
        self._windows: dict[int, Window] = {}
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

    def _trouble(self) -> str:
        """What the device says of itself when it does not do as it is told; nothing, or a clause after its name."""
        return ""

    def _window(self, bar: int) -> Window:
        """The registers of a BAR."""
        if bar not in self._windows:
            self._windows[bar] = self.device.region(bar).map()
        return self._windows[bar]

    @property
    def _registers(self) -> Window:
        return self._window(0)

    def _await(self, done: Callable[[], object], what: str, seconds: float | None = None) -> None:
        """Wait until the device has done it.

        Raises:
            TimeoutError: It has not within that time, or `_seconds`.
        """
        seconds = self._seconds if seconds is None else seconds
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.device.name}{self._trouble()} did not {what} within {seconds:g} s")
            time.sleep(0.001)

    def _enable_interrupt(self) -> Interrupt:
        """Enable MSI-X, vector 0."""
        self._interrupts = True
        (vector,) = self.device.interrupts.msix.enable()
        return vector

    def close(self) -> None:
        """Stop it, and release registers, interrupt and memory; the device stays bound."""
        try:
            if any(not window.closed for window in self._windows.values()):
                self._stop()
        finally:
            for window in self._windows.values():
                window.close()
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
