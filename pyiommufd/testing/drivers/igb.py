"""A driver for Intel's 82576 network controller (igb), over the public API: a copy engine with descriptor rings.

The controller is put in loopback: a frame that it reads from memory by DMA comes back, and is written to memory by
DMA. Registers and descriptors: Intel 82576 datasheet, chapters 7 and 8. Tried with QEMU's igb (QEMU 8 and newer).
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator

from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.testing.drivers.queue_driver import QueueDriver

VENDOR_ID = 0x8086
DEVICE_ID = 0x10C9
SMALLEST, LARGEST = 60, 1024
"""Bytes of a copy: what an Ethernet frame has at least, and what fits the controller's buffers with room to spare."""
MOST = 4095
"""How many copies can be under way at once."""

_CONTROL, _STATUS, _EXTENDED_CONTROL, _PHY = 0x0000, 0x0008, 0x0018, 0x0020
_CAUSE_MASK_CLEAR = 0x00D8
_RECEIVE_CONTROL, _TRANSMIT_CONTROL = 0x0100, 0x0400
_INTERRUPT_MODE, _CAUSE_SET, _MASK_SET, _MASK_CLEAR, _AUTO_CLEAR = 0x1514, 0x1520, 0x1524, 0x1528, 0x152C
_CAUSES = 0x1580
_VECTORS = 0x1700
_RECEIVE_RING, _TRANSMIT_RING = 0x2800, 0x3800
# Within the registers of a ring.
_LOW, _HIGH, _LENGTH, _FORMAT, _HEAD, _TAIL, _QUEUE = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x18, 0x28

_LINK_UP, _RESET = 1 << 1, 1 << 26
_FORCED_GIGABIT = 1 << 12 | 1 << 11 | 2 << 8 | 1 << 6 | 1  # forced duplex and speed, 1000 Mb/s, link up, full duplex
_SPEED = 3 << 8
_DRIVER_LOADED = 1 << 28
_PHY_WRITE, _PHY_READY = 1 << 26 | 1 << 21, 1 << 28  # to the control register of PHY 1
_PHY_NEGOTIATE, _PHY_LOOPBACK = 1 << 12 | 1 << 9, 1 << 14 | 1 << 8 | 1 << 6
# On; every address accepted; the frame back from the MAC, which is how QEMU loops; the checksum cut off.
_RECEIVE = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 15 | 1 << 26
_TRANSMIT = 1 << 1 | 1 << 3  # on, short frames padded
_ONE_BUFFER = 1 << 25  # the format of receive descriptors
_QUEUE_ON = 1 << 25
_MSIX_MODE = 1 << 4
_VECTOR_VALID = 1 << 7
# An advanced data descriptor, with the end of a frame, and a checksum to be added.
_FRAME = 3 << 20 | 1 << 29 | 1 << 25 | 1 << 24
_DONE = 1
_ENTRIES = MOST + 1
_RING = 16 * _ENTRIES


class IgbDriver(QueueDriver):
    """Drives a bound igb as a copy engine. A context manager that stops it.

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
        interrupt: Its MSI-X vector 0: a frame has been received, or `raise_interrupt`.
    """

    def __init__(self, device: Device, ioas: IOAS) -> None:
        if (device.host.vendor_id, device.host.device_id) != (VENDOR_ID, DEVICE_ID):
            raise ValueError(f"{device.name} is not an 82576 (igb)")
        self._next = 0
        super().__init__(device, ioas, 2 * _RING)

    def _prepare(self) -> None:
        self.interrupt = self._enable_interrupt()

    def _start(self, iova: int) -> None:
        registers = self._registers
        self._reset()
        registers.write32(_EXTENDED_CONTROL, registers.read32(_EXTENDED_CONTROL) | _DRIVER_LOADED)
        # QEMU brings the link up by negotiation alone, and without a link it receives nothing.
        self._write_phy(_PHY_NEGOTIATE)
        self._write_phy(_PHY_LOOPBACK)
        registers.write32(_CONTROL, registers.read32(_CONTROL) & ~_SPEED | _FORCED_GIGABIT)
        self._await(lambda: registers.read32(_STATUS) & _LINK_UP, "have a link")
        for ring, start in ((_TRANSMIT_RING, iova), (_RECEIVE_RING, iova + _RING)):
            registers.write32(ring + _LOW, start & 0xFFFF_FFFF)
            registers.write32(ring + _HIGH, start >> 32)
            registers.write32(ring + _LENGTH, _RING)
            registers.write32(ring + _HEAD, 0)
            registers.write32(ring + _TAIL, 0)
        registers.write32(_RECEIVE_RING + _FORMAT, _ONE_BUFFER)
        for ring in (_TRANSMIT_RING, _RECEIVE_RING):
            registers.write32(ring + _QUEUE, _QUEUE_ON)
        registers.write32(_RECEIVE_CONTROL, _RECEIVE)
        registers.write32(_TRANSMIT_CONTROL, _TRANSMIT)
        rings = (_TRANSMIT_RING, _RECEIVE_RING)
        self._await(lambda: all(registers.read32(ring + _QUEUE) & _QUEUE_ON for ring in rings), "turn its queues on")
        # The cause "received in queue 0" goes to vector 0, and is cleared when that has been sent.
        registers.write32(_INTERRUPT_MODE, _MSIX_MODE)
        registers.write32(_AUTO_CLEAR, 1)
        registers.write32(_VECTORS, _VECTOR_VALID)
        registers.write32(_MASK_SET, 1)

    def _reset(self) -> None:
        registers = self._registers
        registers.write32(_CONTROL, registers.read32(_CONTROL) | _RESET)
        time.sleep(0.02)
        self._await(lambda: not registers.read32(_CONTROL) & _RESET, "reset")
        registers.write32(_CAUSE_MASK_CLEAR, 0xFFFF_FFFF)
        registers.write32(_MASK_CLEAR, 0xFFFF_FFFF)

    def _write_phy(self, value: int) -> None:
        registers = self._registers
        registers.write32(_PHY, _PHY_WRITE | value)
        self._await(lambda: registers.read32(_PHY) & _PHY_READY, "reach its PHY")

    def copy(self, source: int, destination: int, length: int, *, count: int = 1, seconds: float = 10.0) -> None:
        """Copy memory by DMA: as a frame, out and back in.

        Args:
            source: The iova of what is sent.
            destination: The iova where it is to be received.
            length: Bytes, from `SMALLEST` to `LARGEST`.
            count: How often; up to `MOST`. The controller is told of all of them at once.
            seconds: How long to wait.

        Raises:
            ValueError: Such a length is no frame, or there are too many; or the driver is closed.
            TimeoutError: The last was not received: DMA is blocked, or bus mastering is off. `restart` has it work
                again.
        """
        if not SMALLEST <= length <= LARGEST:
            raise ValueError(f"a frame has {SMALLEST} to {LARGEST} bytes, not {length}")
        if not 1 <= count <= MOST:
            raise ValueError(f"1 to {MOST} copies can be under way at once, not {count}")
        if self._mapping is None:
            raise ValueError(f"the driver of {self.device.name} is closed")
        received = 0
        for _ in range(count):
            place, self._next = self._next, (self._next + 1) % _ENTRIES
            received = _RING + 16 * place
            struct.pack_into("<QQ", self._memory, received, destination, 0)
            struct.pack_into("<QII", self._memory, 16 * place, source, _FRAME | length, length << 14)
        self._registers.write32(_RECEIVE_RING + _TAIL, self._next)
        self._registers.write32(_TRANSMIT_RING + _TAIL, self._next)
        self._await(lambda: struct.unpack_from("<I", self._memory, received + 8)[0] & _DONE, "receive a frame", seconds)

    @contextlib.contextmanager
    def masked(self) -> Iterator[None]:
        """The controller raises no interrupt during the block, nor after it for what has come meanwhile."""
        self._registers.write32(_MASK_CLEAR, 1)
        try:
            yield
        finally:
            self._registers.write32(_CAUSES, 0xFFFF_FFFF)
            self._registers.write32(_MASK_SET, 1)

    def raise_interrupt(self) -> None:
        """Have the controller raise its interrupt."""
        self._registers.write32(_CAUSE_SET, 1)

    def restart(self) -> None:
        """Start it anew: after a reset of the device, or a copy that did not end."""
        if self._mapping is None:
            raise ValueError(f"the driver of {self.device.name} is closed")
        self._next = 0
        self._memory[:] = bytes(len(self._memory))
        self._start(self._mapping.iova)

    def _halt(self) -> None:
        self._registers.write32(_RECEIVE_CONTROL, 0)
        self._registers.write32(_TRANSMIT_CONTROL, 0)
        self._reset()
