"""A driver for Intel's 82576 network controller (igb), over the public API: a copy engine with descriptor rings.

The controller is put in loopback: a frame that it reads from memory by DMA comes back, and is written to memory by
DMA. Registers and descriptors: Intel 82576 datasheet, chapters 7 and 8. Tried with QEMU's igb (QEMU 8 and newer).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.testing.drivers.intel_rings import (
    CONTROL,
    DONE,
    LINK_UP,
    RECEIVE,
    RECEIVE_CONTROL,
    RECEIVE_RING,
    STATUS,
    TRANSMIT,
    TRANSMIT_CONTROL,
    TRANSMIT_RING,
    IntelRings,
)
from pyiommufd.testing.drivers.intel_rings import LARGEST as LARGEST
from pyiommufd.testing.drivers.intel_rings import SMALLEST as SMALLEST
from pyiommufd.testing.drivers.intel_rings import VENDOR_ID as VENDOR_ID

DEVICE_ID = 0x10C9
MOST = 4095
"""How many copies can be under way at once."""

_EXTENDED_CONTROL, _PHY = 0x0018, 0x0020
_INTERRUPT_MODE, _CAUSE_SET, _MASK_SET, _MASK_CLEAR, _AUTO_CLEAR = 0x1514, 0x1520, 0x1524, 0x1528, 0x152C
_CAUSES = 0x1580
_VECTORS = 0x1700
_FORMAT, _QUEUE = 0x0C, 0x28  # within the registers of a ring

_FORCED_GIGABIT = 1 << 12 | 1 << 11 | 2 << 8 | 1 << 6 | 1  # forced duplex and speed, 1000 Mb/s, link up, full duplex
_SPEED = 3 << 8
_DRIVER_LOADED = 1 << 28
_PHY_WRITE, _PHY_READY = 1 << 26 | 1 << 21, 1 << 28  # to the control register of PHY 1
_PHY_NEGOTIATE, _PHY_LOOPBACK = 1 << 12 | 1 << 9, 1 << 14 | 1 << 8 | 1 << 6
_ONE_BUFFER = 1 << 25  # the format of receive descriptors
_QUEUE_ON = 1 << 25
_MSIX_MODE = 1 << 4
_VECTOR_VALID = 1 << 7
# An advanced data descriptor, with the end of a frame, and a checksum to be added.
_FRAME = 3 << 20 | 1 << 29 | 1 << 25 | 1 << 24


class IgbDriver(IntelRings):
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
        super().__init__(device, ioas, DEVICE_ID, "82576 (igb)", MOST + 1)

    def _prepare(self) -> None:
        self.interrupt = self._enable_interrupt()

    def _start(self, iova: int) -> None:
        registers = self._registers
        self._reset()
        registers.write32(_EXTENDED_CONTROL, registers.read32(_EXTENDED_CONTROL) | _DRIVER_LOADED)
        # QEMU brings the link up by negotiation alone, and without a link it receives nothing.
        self._write_phy(_PHY_NEGOTIATE)
        self._write_phy(_PHY_LOOPBACK)
        registers.write32(CONTROL, registers.read32(CONTROL) & ~_SPEED | _FORCED_GIGABIT)
        self._await(lambda: registers.read32(STATUS) & LINK_UP, "have a link")
        self._set_rings(iova)
        registers.write32(RECEIVE_RING + _FORMAT, _ONE_BUFFER)
        for ring in (TRANSMIT_RING, RECEIVE_RING):
            registers.write32(ring + _QUEUE, _QUEUE_ON)
        registers.write32(RECEIVE_CONTROL, RECEIVE)
        registers.write32(TRANSMIT_CONTROL, TRANSMIT)
        rings = (TRANSMIT_RING, RECEIVE_RING)
        self._await(lambda: all(registers.read32(ring + _QUEUE) & _QUEUE_ON for ring in rings), "turn its queues on")
        # The cause "received in queue 0" goes to vector 0, and is cleared when that has been sent.
        registers.write32(_INTERRUPT_MODE, _MSIX_MODE)
        registers.write32(_AUTO_CLEAR, 1)
        registers.write32(_VECTORS, _VECTOR_VALID)
        registers.write32(_MASK_SET, 1)

    def _reset(self) -> None:
        self._reset_controller()
        self._registers.write32(_MASK_CLEAR, 0xFFFF_FFFF)

    def _write_phy(self, value: int) -> None:
        registers = self._registers
        registers.write32(_PHY, _PHY_WRITE | value)
        self._await(lambda: registers.read32(_PHY) & _PHY_READY, "reach its PHY")

    def copy(self, source: int, destination: int, length: int, *, count: int = 1, seconds: float = 10.0) -> None:
        """Copy memory by DMA: as a frame, out and back in.

        Args:
            source: The iova of what is sent.
            destination: The iova where it is to be received.
            length: Bytes, from `intel_rings.SMALLEST` to `intel_rings.LARGEST`.
            count: How often; up to `MOST`. The controller is told of all of them at once.
            seconds: How long to wait.

        Raises:
            ValueError: Such a length is no frame, or there are too many; or the driver is closed.
            TimeoutError: The last was not received: DMA is blocked, or bus mastering is off. `restart` has it work
                again.
        """
        self._check_copy(length)
        if not 1 <= count <= MOST:
            raise ValueError(f"1 to {MOST} copies can be under way at once, not {count}")
        received = 0
        for _ in range(count):
            entry = self._take_entry()
            received = self._ring_size + 16 * entry
            struct.pack_into("<QQ", self._memory, received, destination, 0)
            struct.pack_into("<QII", self._memory, 16 * entry, source, _FRAME | length, length << 14)
        self._write_tails()
        self._await(lambda: struct.unpack_from("<I", self._memory, received + 8)[0] & DONE, "receive a frame", seconds)

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
        self._memory[:] = bytes(len(self._memory))
        self._start(self._mapping.iova)

    def _halt(self) -> None:
        self._registers.write32(RECEIVE_CONTROL, 0)
        self._registers.write32(TRANSMIT_CONTROL, 0)
        self._reset()
