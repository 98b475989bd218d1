"""A driver for Intel's 82574 network controller (e1000e), over the public API: one copy of memory at a time.

The controller is put in loopback: a frame that it reads from memory by DMA comes back, and is written to memory by
DMA. Registers and legacy descriptors: Intel 82574 datasheet, chapters 7 and 10. Tried with QEMU's e1000e (QEMU 7.2
and newer).
"""

from __future__ import annotations

import struct
import time

from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.testing.drivers.queue_driver import QueueDriver

VENDOR_ID = 0x8086
DEVICE_ID = 0x10D3
SMALLEST, LARGEST = 60, 1024
"""Bytes of a copy: what an Ethernet frame has at least, and what fits the controller's buffers with room to spare."""

_CONTROL, _STATUS, _MASK_CLEAR = 0x0000, 0x0008, 0x00D8
_RECEIVE_CONTROL, _TRANSMIT_CONTROL, _RECEIVE_FORMAT = 0x0100, 0x0400, 0x5008
_RECEIVE_RING, _TRANSMIT_RING = 0x2800, 0x3800
# Within the registers of a ring.
_LOW, _HIGH, _LENGTH, _HEAD, _TAIL = 0x00, 0x04, 0x08, 0x10, 0x18
_LINK_UP = 1 << 1
_SET_LINK_UP, _RESET = 1 << 6, 1 << 26
# On; every address accepted; the frame back from the MAC; the checksum cut off.
_RECEIVE = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 15 | 1 << 26
_TRANSMIT = 1 << 1 | 1 << 3  # on, short frames padded
_FRAME = 1 << 0 | 1 << 1 | 1 << 3  # its end, with a checksum to be added, and to be reported
_DONE = 1
_ENTRIES = 64
_RING = 16 * _ENTRIES


class E1000eDriver(QueueDriver):
    """Drives a bound e1000e as a copy engine. A context manager that stops it.

    It neither binds nor attaches, and leaves bus mastering as it is: that is what a test wants to choose.

    Args:
        device: The controller, bound, and attached to the address space.
        ioas: Where its rings are mapped.

    Raises:
        ValueError: It is another device.
        TimeoutError: It does not start.
        IoctlError: The kernel refused something.

    Attributes:
        device: The controller.
    """

    def __init__(self, device: Device, ioas: IOAS) -> None:
        if (device.host.vendor_id, device.host.device_id) != (VENDOR_ID, DEVICE_ID):
            raise ValueError(f"{device.name} is not an 82574 (e1000e)")
        self._next = 0
        super().__init__(device, ioas, 4096)

    def _prepare(self) -> None:
        self._reset()

    def _start(self, iova: int) -> None:
        registers = self._registers
        registers.write32(_CONTROL, registers.read32(_CONTROL) | _SET_LINK_UP)
        for ring, start in ((_TRANSMIT_RING, iova), (_RECEIVE_RING, iova + _RING)):
            registers.write32(ring + _LOW, start & 0xFFFF_FFFF)
            registers.write32(ring + _HIGH, start >> 32)
            registers.write32(ring + _LENGTH, _RING)
            registers.write32(ring + _HEAD, 0)
            registers.write32(ring + _TAIL, 0)
        # QEMU's reset by the control register leaves the format that a host driver has chosen.
        registers.write32(_RECEIVE_FORMAT, 0)
        registers.write32(_RECEIVE_CONTROL, _RECEIVE)
        registers.write32(_TRANSMIT_CONTROL, _TRANSMIT)
        self._await(lambda: registers.read32(_STATUS) & _LINK_UP, "have a link")

    def _reset(self) -> None:
        registers = self._registers
        registers.write32(_RECEIVE_CONTROL, 0)
        registers.write32(_TRANSMIT_CONTROL, 0)
        registers.write32(_CONTROL, registers.read32(_CONTROL) | _RESET)
        time.sleep(0.02)
        self._await(lambda: not registers.read32(_CONTROL) & _RESET, "reset")
        registers.write32(_MASK_CLEAR, 0xFFFF_FFFF)

    def copy(self, source: int, destination: int, length: int, *, seconds: float = 10.0) -> None:
        """Copy memory by DMA: as a frame, out and back in.

        Args:
            source: The iova of what is sent.
            destination: The iova where it is to be received.
            length: Bytes, from `SMALLEST` to `LARGEST`.
            seconds: How long to wait.

        Raises:
            ValueError: Such a length is no frame; or the driver is closed.
            TimeoutError: It was not received: DMA is blocked, or bus mastering is off. Use a new driver then.
        """
        if not SMALLEST <= length <= LARGEST:
            raise ValueError(f"a frame has {SMALLEST} to {LARGEST} bytes, not {length}")
        if self._mapping is None:
            raise ValueError(f"the driver of {self.device.name} is closed")
        place, self._next = self._next, (self._next + 1) % _ENTRIES
        received = _RING + 16 * place
        struct.pack_into("<QQ", self._memory, received, destination, 0)
        struct.pack_into("<QII", self._memory, 16 * place, source, _FRAME << 24 | length, 0)
        self._registers.write32(_RECEIVE_RING + _TAIL, self._next)
        self._registers.write32(_TRANSMIT_RING + _TAIL, self._next)
        self._await(lambda: self._memory[received + 12] & _DONE, "receive a frame", seconds)

    def _halt(self) -> None:
        self._reset()
