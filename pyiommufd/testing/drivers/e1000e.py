"""A driver for Intel's 82574 network controller (e1000e), over the public API: one copy of memory at a time.

The controller is put in loopback: a frame that it reads from memory by DMA comes back, and is written to memory by
DMA. Registers and legacy descriptors: Intel 82574 datasheet, chapters 7 and 10. Tried with QEMU's e1000e (QEMU 7.2
and newer).
"""

from __future__ import annotations

import struct

from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.testing.drivers.intel_rings import (
    CONTROL,
    DONE,
    LINK_UP,
    RECEIVE,
    RECEIVE_CONTROL,
    STATUS,
    TRANSMIT,
    TRANSMIT_CONTROL,
    IntelRings,
)
from pyiommufd.testing.drivers.intel_rings import LARGEST as LARGEST
from pyiommufd.testing.drivers.intel_rings import SMALLEST as SMALLEST
from pyiommufd.testing.drivers.intel_rings import VENDOR_ID as VENDOR_ID

DEVICE_ID = 0x10D3

_RECEIVE_FORMAT = 0x5008
_SET_LINK_UP = 1 << 6
_FRAME = 1 << 0 | 1 << 1 | 1 << 3  # its end, with a checksum to be added, and to be reported
_ENTRIES = 64


class E1000eDriver(IntelRings):
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
        super().__init__(device, ioas, DEVICE_ID, "82574 (e1000e)", _ENTRIES)

    def _prepare(self) -> None:
        self._reset()

    def _start(self, iova: int) -> None:
        registers = self._registers
        registers.write32(CONTROL, registers.read32(CONTROL) | _SET_LINK_UP)
        self._set_rings(iova)
        # QEMU's reset by the control register leaves the format that a host driver has chosen.
        registers.write32(_RECEIVE_FORMAT, 0)
        registers.write32(RECEIVE_CONTROL, RECEIVE)
        registers.write32(TRANSMIT_CONTROL, TRANSMIT)
        self._await(lambda: registers.read32(STATUS) & LINK_UP, "have a link")

    def _reset(self) -> None:
        self._registers.write32(RECEIVE_CONTROL, 0)
        self._registers.write32(TRANSMIT_CONTROL, 0)
        self._reset_controller()

    def copy(self, source: int, destination: int, length: int, *, seconds: float = 10.0) -> None:
        """Copy memory by DMA: as a frame, out and back in.

        Args:
            source: The iova of what is sent.
            destination: The iova where it is to be received.
            length: Bytes, from `intel_rings.SMALLEST` to `intel_rings.LARGEST`.
            seconds: How long to wait.

        Raises:
            ValueError: Such a length is no frame; or the driver is closed.
            TimeoutError: It was not received: DMA is blocked, or bus mastering is off. Use a new driver then.
        """
        self._check_copy(length)
        entry = self._take_entry()
        received = self._ring_size + 16 * entry
        struct.pack_into("<QQ", self._memory, received, destination, 0)
        struct.pack_into("<QII", self._memory, 16 * entry, source, _FRAME << 24 | length, 0)
        self._write_tails()
        self._await(lambda: self._memory[received + 12] & DONE, "receive a frame", seconds)

    def _halt(self) -> None:
        self._reset()
