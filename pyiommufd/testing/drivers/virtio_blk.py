"""A driver for virtio disks on PCI, over the public API: reads sectors by DMA, one request at a time.

Numbers and layouts: Virtual I/O Device (VIRTIO) Version 1.2, 2.7 (split virtqueues), 4.1 (PCI), 5.2 (block device).
"""

from __future__ import annotations

import errno
import struct

from pyiommufd.kernel.device.config_space import CapabilityID
from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.kernel.window import Window
from pyiommufd.testing.drivers.queue_driver import QueueDriver

VENDOR_ID = 0x1AF4
DEVICE_ID = 0x1042
SECTOR = 512
LARGEST = 4096
"""Bytes of a read at most."""

# The structures that vendor capabilities locate.
_COMMON, _NOTIFY, _DEVICE = 1, 2, 4
# Within the common one.
_FEATURE_SELECT, _FEATURES, _OUR_FEATURE_SELECT, _OUR_FEATURES = 0x00, 0x04, 0x08, 0x0C
_DEVICE_STATUS, _QUEUE_SELECT, _QUEUE_SIZE, _QUEUE_ENABLE, _QUEUE_NOTIFY = 0x14, 0x16, 0x18, 0x1C, 0x1E
_QUEUE_DESCRIPTORS, _QUEUE_AVAILABLE, _QUEUE_USED = 0x20, 0x28, 0x30

_ACKNOWLEDGE, _DRIVER, _DRIVER_OK, _FEATURES_OK = 1, 2, 4, 8
# From bit 32 on: a device of version 1, whose DMA goes through the IOMMU.
_WANTED = 0b11
_NEXT, _WRITES = 1, 2
_READ = 0
_ENTRIES = 4  # a request takes three
# Where in the memory: descriptors, available ring, used ring, a request's header and status; then a page of data.
_AVAILABLE, _USED, _HEADER, _STATUS, _DATA = 0x100, 0x200, 0x300, 0x400, 0x1000


class VirtioBlkDriver(QueueDriver):
    """Drives a bound virtio disk. A context manager that stops it.

    It neither binds nor attaches, and leaves bus mastering as it is: that is what a test wants to choose.

    Args:
        device: The disk, bound, and attached to the address space.
        ioas: Where its queue is mapped.

    Raises:
        ValueError: It is another device, or one that bypasses the IOMMU.
        TimeoutError: It does not start.
        IoctlError: The kernel refused something.

    Attributes:
        device: The disk.
        sectors: How many sectors of 512 bytes it has.
    """

    def __init__(self, device: Device, ioas: IOAS) -> None:
        if (device.host.vendor_id, device.host.device_id) != (VENDOR_ID, DEVICE_ID):
            raise ValueError(f"{device.name} is not a virtio disk of version 1")
        self._places: dict[int, tuple[Window, int, int]] = {}
        self._requests = 0
        super().__init__(device, ioas, _DATA + LARGEST)

    def _prepare(self) -> None:
        self._places = self._structures()
        self._common, self._common_at, _ = self._places[_COMMON]
        self._reset()

    def _structures(self) -> dict[int, tuple[Window, int, int]]:
        """The device's structures: a window, the offset in it, and for the doorbells the distance between two."""
        config = self.device.config
        found: dict[int, tuple[Window, int, int]] = {}
        for capability in config.capabilities():
            if capability.extended or capability.id != CapabilityID.VENDOR:
                continue
            at = capability.offset
            kind, bar = config.read8(at + 3), config.read8(at + 4)
            if kind in (_COMMON, _NOTIFY, _DEVICE) and kind not in found:
                multiplier = config.read32(at + 16) if kind == _NOTIFY else 0
                found[kind] = self._window(bar), config.read32(at + 8), multiplier
        return found

    def _reset(self) -> None:
        at = self._common_at + _DEVICE_STATUS
        self._common.write8(at, 0)
        self._await(lambda: self._common.read8(at) == 0, "reset")

    def _start(self, iova: int) -> None:
        common, at = self._common, self._common_at
        common.write8(at + _DEVICE_STATUS, _ACKNOWLEDGE | _DRIVER)
        common.write32(at + _FEATURE_SELECT, 1)
        if common.read32(at + _FEATURES) & _WANTED != _WANTED:
            raise ValueError(f"{self.device.name} bypasses the IOMMU: QEMU's iommu_platform=on prevents that")
        for half, features in ((0, 0), (1, _WANTED)):
            common.write32(at + _OUR_FEATURE_SELECT, half)
            common.write32(at + _OUR_FEATURES, features)
        common.write8(at + _DEVICE_STATUS, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK)
        common.write16(at + _QUEUE_SELECT, 0)
        common.write16(at + _QUEUE_SIZE, _ENTRIES)
        for register, offset in ((_QUEUE_DESCRIPTORS, 0), (_QUEUE_AVAILABLE, _AVAILABLE), (_QUEUE_USED, _USED)):
            common.write32(at + register, (iova + offset) & 0xFFFF_FFFF)
            common.write32(at + register + 4, (iova + offset) >> 32)
        common.write16(at + _QUEUE_ENABLE, 1)
        common.write8(at + _DEVICE_STATUS, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK | _DRIVER_OK)
        self._notify, notify_at, multiplier = self._places[_NOTIFY]
        self._doorbell = notify_at + multiplier * common.read16(at + _QUEUE_NOTIFY)
        window, at, _ = self._places[_DEVICE]
        self.sectors = window.read32(at) | window.read32(at + 4) << 32

    def read(self, sector: int, length: int = SECTOR, *, seconds: float = 10.0) -> bytes:
        """Read from the disk: the device writes to memory by DMA.

        Args:
            sector: The first one.
            length: Bytes, a multiple of `SECTOR`, up to `LARGEST`.
            seconds: How long to wait.

        Raises:
            ValueError: Such a length cannot be read, or the driver is closed.
            TimeoutError: It does not answer: its DMA is blocked, or bus mastering is off. Use a new driver then.
            OSError: It reports an error, such as for a sector past its end.
        """
        if length % SECTOR or not 0 < length <= LARGEST:
            raise ValueError(f"{length} bytes are not 1 to {LARGEST // SECTOR} sectors")
        if self._mapping is None:
            raise ValueError(f"the driver of {self.device.name} is closed")
        memory, iova = self._memory, self._mapping.iova
        struct.pack_into("<IIQ", memory, _HEADER, _READ, 0, sector)
        memory[_STATUS] = 0xFF
        chain = ((_HEADER, 16, _NEXT), (_DATA, length, _NEXT | _WRITES), (_STATUS, 1, _WRITES))
        for number, (offset, size, flags) in enumerate(chain):
            struct.pack_into(
                "<QIHH", memory, 16 * number, iova + offset, size, flags, number + 1 if flags & _NEXT else 0
            )
        struct.pack_into("<H", memory, _AVAILABLE + 4 + 2 * (self._requests % _ENTRIES), 0)
        self._requests += 1
        count = self._requests & 0xFFFF
        struct.pack_into("<HH", memory, _AVAILABLE, 1, count)  # 1: it need not interrupt
        self._notify.write16(self._doorbell, 0)
        self._await(lambda: struct.unpack_from("<H", memory, _USED + 2)[0] == count, "answer", seconds)
        if memory[_STATUS]:
            raise OSError(errno.EIO, f"{self.device.name} answers a read of sector {sector} with {memory[_STATUS]}")
        return bytes(memory[_DATA : _DATA + length])

    def _halt(self) -> None:
        if self._places:
            self._reset()
