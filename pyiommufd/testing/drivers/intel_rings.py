"""What the drivers of Intel's network controllers have in common: reset, and a ring of descriptors each way.

Their registers are at the same offsets in the 82574 (datasheet, chapter 10) and the 82576 (datasheet, chapter 8).
"""

from __future__ import annotations

import time

from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.testing.drivers.queue_driver import QueueDriver

VENDOR_ID = 0x8086
SMALLEST, LARGEST = 60, 1024
"""Bytes of a copy: what an Ethernet frame has at least, and what fits the controller's buffers with room to spare."""

CONTROL, STATUS, CAUSE_MASK_CLEAR = 0x0000, 0x0008, 0x00D8
RECEIVE_CONTROL, TRANSMIT_CONTROL = 0x0100, 0x0400
RECEIVE_RING, TRANSMIT_RING = 0x2800, 0x3800
# Within the registers of a ring.
LOW, HIGH, LENGTH, HEAD, TAIL = 0x00, 0x04, 0x08, 0x10, 0x18
LINK_UP, RESET = 1 << 1, 1 << 26
# On; every address accepted; the frame back from the MAC, which is how QEMU loops; the checksum cut off.
RECEIVE = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 15 | 1 << 26
TRANSMIT = 1 << 1 | 1 << 3  # on, short frames padded
DONE = 1


class IntelRings(QueueDriver):
    """Drives a bound network controller of Intel's by two rings in memory, the one for transmission first.

    Args:
        device: The controller, bound, and attached to the address space.
        ioas: Where its rings are mapped.
        device_id: The PCI device id of the controllers that the driver is for.
        model: What they are called.
        entries: How many descriptors a ring has.

    Raises:
        ValueError: It is another device.

    Attributes:
        device: The controller.
    """

    def __init__(self, device: Device, ioas: IOAS, device_id: int, model: str, entries: int) -> None:
        if (device.host.vendor_id, device.host.device_id) != (VENDOR_ID, device_id):
            raise ValueError(f"{device.name} is not an {model}")
        self._entries = entries
        self._ring_size = 16 * entries
        self._next = 0
        super().__init__(device, ioas, 2 * self._ring_size)

    def _set_rings(self, iova: int) -> None:
        """Have the controller use the rings in memory at that iova, from their first descriptors on."""
        self._next = 0
        for ring, start in ((TRANSMIT_RING, iova), (RECEIVE_RING, iova + self._ring_size)):
            self._registers.write32(ring + LOW, start & 0xFFFF_FFFF)
            self._registers.write32(ring + HIGH, start >> 32)
            self._registers.write32(ring + LENGTH, self._ring_size)
            self._registers.write32(ring + HEAD, 0)
            self._registers.write32(ring + TAIL, 0)

    def _reset_controller(self) -> None:
        """Reset the controller, and mask its interrupts."""
        registers = self._registers
        registers.write32(CONTROL, registers.read32(CONTROL) | RESET)
        time.sleep(0.02)
        self._await(lambda: not registers.read32(CONTROL) & RESET, "reset")
        registers.write32(CAUSE_MASK_CLEAR, 0xFFFF_FFFF)

    def _check_copy(self, length: int) -> None:
        """Raises ValueError: Such a length is no frame; or the driver is closed."""
        if not SMALLEST <= length <= LARGEST:
            raise ValueError(f"a frame has {SMALLEST} to {LARGEST} bytes, not {length}")
        if self._mapping is None:
            raise ValueError(f"the driver of {self.device.name} is closed")

    def _take_entry(self) -> int:
        """The index of the descriptors for the next frame, in both rings."""
        entry, self._next = self._next, (self._next + 1) % self._entries
        return entry

    def _write_tails(self) -> None:
        """Have the controller work on all descriptors that have been taken."""
        self._registers.write32(RECEIVE_RING + TAIL, self._next)
        self._registers.write32(TRANSMIT_RING + TAIL, self._next)
