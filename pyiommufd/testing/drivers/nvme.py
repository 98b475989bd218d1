"""A driver for NVMe controllers, over the public API: DMA by the admin queue, completion by MSI-X.

Numbers and layouts: NVM Express Base Specification 1.4, 3.1 (registers), 4.2 and 4.6 (queue entries), 5.15 (Identify).
"""

from __future__ import annotations

import contextlib
import errno
import struct
import time
from dataclasses import dataclass

from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.interrupts.interrupt import Interrupt
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.testing.drivers.queue_driver import QueueDriver

CLASS_CODE = 0x010802
"""The PCI class of an NVMe controller."""

_CAPABILITIES, _CONFIGURATION, _STATUS = 0x00, 0x14, 0x1C
_ADMIN_QUEUE_ATTRIBUTES, _ADMIN_SUBMISSION, _ADMIN_COMPLETION = 0x24, 0x28, 0x30
_DOORBELLS = 0x1000
_ENABLE = 1
# Entries of 64 and 16 bytes, pages of 4 KiB, the NVM command set.
_ENTRY_SIZES = 6 << 16 | 4 << 20
_READY, _FATAL = 1, 2
_IDENTIFY = 0x06
_PAGE = 4096
_ENTRIES = 16  # of each queue: one page holds many more


@dataclass(frozen=True, slots=True)
class Identity:
    """What a controller says it is.

    Attributes:
        vendor_id: The PCI vendor id.
        serial: Its serial number.
        model: Its model.
        firmware: The revision of its firmware.
        namespaces: How many namespaces it can have.
    """

    vendor_id: int
    serial: str
    model: str
    firmware: str
    namespaces: int


class NvmeDriver(QueueDriver):
    """Drives the admin queue of an NVMe controller. A context manager that stops the controller.

    It neither binds nor attaches, and leaves bus mastering as it is: that is what a test wants to choose.

    Args:
        device: The controller, bound, and attached to the address space.
        ioas: Where its queues are mapped.
        use_interrupt: Wait for completions by MSI-X, and not by looking at the queue.

    Raises:
        ValueError: The device is no NVMe controller, or one with pages larger than 4 KiB.
        TimeoutError: The controller does not start or stop.
        IoctlError: The kernel refused something.

    Attributes:
        device: The controller.
        interrupt: Its interrupt, or None.
    """

    def __init__(self, device: Device, ioas: IOAS, *, use_interrupt: bool = True) -> None:
        if device.config.class_code != CLASS_CODE:
            raise ValueError(f"{device.name} is not an NVMe controller: its class is {device.config.class_code:06x}")
        self.interrupt: Interrupt | None = None
        self._use_interrupt = use_interrupt
        self._command = 0
        # The submission queue, the completion queue, and a page of data.
        super().__init__(device, ioas, 3 * _PAGE)

    def _prepare(self) -> None:
        capabilities = self._registers.read64(_CAPABILITIES)
        self._seconds = max(1, capabilities >> 24 & 0xFF) * 0.5 + 5  # units of 500 ms
        if capabilities >> 48 & 0xF:
            raise ValueError(f"{self.device.name} has no pages of 4 KiB")
        self._stride = 4 << (capabilities >> 32 & 0xF)
        self._halt()
        if self._use_interrupt:
            self.interrupt = self._enable_interrupt()

    def _start(self, iova: int) -> None:
        registers = self._registers
        registers.write32(_ADMIN_QUEUE_ATTRIBUTES, (_ENTRIES - 1) << 16 | (_ENTRIES - 1))
        registers.write64(_ADMIN_SUBMISSION, iova)
        registers.write64(_ADMIN_COMPLETION, iova + _PAGE)
        registers.write32(_CONFIGURATION, _ENTRY_SIZES | _ENABLE)
        self._await(lambda: bool(registers.read32(_STATUS) & _READY), "start")

    def _halt(self) -> None:
        registers = self._registers
        registers.write32(_CONFIGURATION, 0)
        self._await(lambda: not registers.read32(_STATUS) & _READY, "stop")

    def _trouble(self) -> str:
        return ", which reports a fatal error," if self._registers.read32(_STATUS) & _FATAL else ""

    @property
    def enabled(self) -> bool:
        """Whether the controller is on: a reset turns it off."""
        return bool(self._registers.read32(_CONFIGURATION) & _ENABLE)

    def identify(self) -> Identity:
        """Ask the controller what it is: it writes that to memory by DMA.

        Raises:
            TimeoutError: It does not answer: its DMA is blocked, or bus mastering is off.
            OSError: It reports an error.
        """
        data = self.admin(_IDENTIFY, (1, 0, 0, 0, 0, 0))

        def text(start: int, length: int) -> str:
            return data[start : start + length].decode("ascii", "replace").strip(" \0")

        (vendor,) = struct.unpack_from("<H", data, 0)
        (namespaces,) = struct.unpack_from("<I", data, 516)
        return Identity(vendor, text(4, 20), text(24, 40), text(64, 8), namespaces)

    def admin(self, opcode: int, dwords: tuple[int, int, int, int, int, int], *, namespace: int = 0) -> bytes:
        """Carry out an admin command that has the data page as its memory.

        Args:
            opcode: The command.
            dwords: Its dwords 10 to 15.
            namespace: The namespace that it concerns.

        Returns:
            The data page afterwards.

        Raises:
            TimeoutError, OSError: As for `identify`.
        """
        if self._mapping is None:
            raise ValueError(f"the driver of {self.device.name} is closed")
        place = self._command % _ENTRIES
        phase = 1 - self._command // _ENTRIES % 2
        identifier = self._command & 0xFFFF
        data = self._mapping.iova + 2 * _PAGE
        self._memory[2 * _PAGE :] = bytes(len(self._memory) - 2 * _PAGE)
        struct.pack_into(
            "<BBHI8xQQQ6I", self._memory, 64 * place, opcode, 0, identifier, namespace, 0, data, 0, *dwords
        )
        self._command += 1
        self._registers.write32(_DOORBELLS, (place + 1) % _ENTRIES)
        status = self._complete(_PAGE + 16 * place, phase)
        self._registers.write32(_DOORBELLS + self._stride, (place + 1) % _ENTRIES)
        if status >> 1:
            raise OSError(errno.EIO, f"{self.device.name} answers command {opcode:#04x} with status {status >> 1:#x}")
        return bytes(self._memory[2 * _PAGE : 3 * _PAGE])

    def _complete(self, offset: int, phase: int) -> int:
        end = time.monotonic() + self._seconds
        while True:
            (status,) = struct.unpack_from("<H", self._memory, offset + 14)
            if status & 1 == phase:
                return int(status)
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"{self.device.name} did not answer within {self._seconds:g} s: is it attached, and bus_master on?"
                )
            if self.interrupt is None:
                time.sleep(0.0005)
            else:
                with contextlib.suppress(TimeoutError):
                    self.interrupt.wait(left)
