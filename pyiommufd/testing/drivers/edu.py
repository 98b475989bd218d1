"""A driver for QEMU's educational device, over the public API: real DMA that is easy to see.

The device (QEMU, docs/specs/edu.rst) has an internal buffer of 4 KiB and one DMA engine, which copies between
that buffer and memory. Without bus mastering, or with its DMA blocked, a transfer ends as usual and moves nothing.
"""

from __future__ import annotations

import time

from pyiommufd.closing import Closing
from pyiommufd.kernel.device.device import Device

VENDOR_ID = 0x1234
DEVICE_ID = 0x11E8
BUFFER_SIZE = 4095
"""Bytes of the device's internal buffer that can be used: at its 4096th QEMU 7.2 ends the whole machine."""
DMA_BITS = 28
"""Width of its I/O virtual addresses, unless QEMU was given another ``dma_mask=``. The IOMMU does not know it."""

_IDENTIFICATION = 0x00
_LIVENESS = 0x04
_INTERRUPT_STATUS = 0x24
_INTERRUPT_RAISE = 0x60
_INTERRUPT_ACKNOWLEDGE = 0x64
_SOURCE = 0x80
_DESTINATION = 0x88
_COUNT = 0x90
_COMMAND = 0x98
_BUFFER = 0x40000  # the engine's address of the internal buffer

_START = 1
_TO_MEMORY = 2


class EduDriver(Closing):
    """Drives a bound edu device. A context manager that releases its registers.

    It neither binds nor attaches, and leaves bus mastering as it is: that is what a test wants to choose.

    Args:
        device: The device, bound to an iommufd.

    Raises:
        ValueError: It is not an edu device.
        IoctlError: Its registers cannot be mapped.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._registers = device.region(0).map()
        try:
            if self.identification & 0xFF != 0xED:
                raise ValueError(f"{device.name} is not an edu device: it identifies as {self.identification:#010x}")
        except BaseException:
            self.close()
            raise

    @property
    def identification(self) -> int:
        """The identification register: major and minor version, and 0xed in the lowest byte."""
        return self._registers.read32(_IDENTIFICATION)

    def invert(self, value: int) -> int:
        """Have the device invert 32 bits (the liveness register)."""
        self._registers.write32(_LIVENESS, value)
        return self._registers.read32(_LIVENESS)

    def copy_in(self, iova: int, length: int, *, offset: int = 0, seconds: float = 10.0) -> None:
        """DMA from memory into the device's buffer.

        Args:
            iova: Where the memory is for the device; of 28 bits unless the device was made otherwise.
            length: Bytes.
            offset: Where in the device's buffer, in bytes.
            seconds: How long to wait for the engine.

        Raises:
            ValueError: The range is not within the device's buffer.
            TimeoutError: The engine did not finish.
        """
        self._transfer(iova, _BUFFER + offset, length, _START, offset, seconds)

    def copy_out(self, iova: int, length: int, *, offset: int = 0, seconds: float = 10.0) -> None:
        """DMA from the device's buffer to memory. Arguments and errors as for `copy_in`."""
        self._transfer(_BUFFER + offset, iova, length, _START | _TO_MEMORY, offset, seconds)

    @property
    def interrupt_status(self) -> int:
        """The interrupts that have been raised and not acknowledged, a bit each."""
        return self._registers.read32(_INTERRUPT_STATUS)

    def raise_interrupt(self, bits: int = 1) -> None:
        """Have the device raise its interrupt: by MSI where that is enabled, else by INTx.

        Args:
            bits: What to set in the status.
        """
        self._registers.write32(_INTERRUPT_RAISE, bits)

    def acknowledge_interrupt(self, bits: int = 0xFFFF_FFFF) -> None:
        """Clear bits of the status; INTx is asserted until none is left."""
        self._registers.write32(_INTERRUPT_ACKNOWLEDGE, bits)

    def _transfer(self, source: int, destination: int, length: int, command: int, offset: int, seconds: float) -> None:
        if offset < 0 or length <= 0 or offset + length > BUFFER_SIZE:
            raise ValueError(f"{length} bytes at {offset} are not within the device's {BUFFER_SIZE}")
        registers = self._registers
        registers.write64(_SOURCE, source)
        registers.write64(_DESTINATION, destination)
        registers.write64(_COUNT, length)
        registers.write64(_COMMAND, command)
        # A transfer takes 100 ms of the machine's time.
        end = time.monotonic() + seconds
        while registers.read64(_COMMAND) & _START:
            if time.monotonic() > end:
                raise TimeoutError(f"the DMA engine of {self.device.name} did not finish within {seconds:g} s")
            time.sleep(0.005)

    def close(self) -> None:
        """Release the registers; the device stays bound."""
        self._registers.close()
