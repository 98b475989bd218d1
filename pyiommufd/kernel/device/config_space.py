"""The PCI configuration space: named registers and the walk of the capabilities.

Register numbers as in the PCI Express Base Specification 6.0, 7.5 and 7.9.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pyiommufd.errors import IoctlError
from pyiommufd.kernel.device.region_bytes import RegionBytes
from pyiommufd.kernel.memory.arguments import check_bool, whole
from pyiommufd.printable import OneLine
from pyiommufd.uapi import ioctls

_VENDOR_ID, _DEVICE_ID, _COMMAND, _STATUS, _REVISION_ID = 0x00, 0x02, 0x04, 0x06, 0x08
_HEADER_TYPE, _SUBSYSTEM_VENDOR_ID, _SUBSYSTEM_ID = 0x0E, 0x2C, 0x2E
_CAPABILITIES, _INTERRUPT_LINE, _INTERRUPT_PIN = 0x34, 0x3C, 0x3D
_STATUS_HAS_CAPABILITIES = 0x10
_HEADER_SIZE, _STANDARD_SIZE = 0x40, 0x100


class Command(IntFlag):
    """The bits of a PCI device's command register."""

    IO = 0x0001
    MEMORY = 0x0002
    MASTER = 0x0004
    SPECIAL_CYCLES = 0x0008
    INVALIDATE = 0x0010
    VGA_PALETTE = 0x0020
    PARITY = 0x0040
    WAIT = 0x0080
    SERR = 0x0100
    FAST_BACK = 0x0200
    INTX_DISABLE = 0x0400


class CapabilityID(IntEnum):
    """The ids of PCI capabilities, in the first 256 bytes of the configuration space."""

    PM = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOT_ID = 0x04
    MSI = 0x05
    HOT_SWAP = 0x06
    PCIX = 0x07
    HYPERTRANSPORT = 0x08
    VENDOR = 0x09
    DEBUG_PORT = 0x0A
    SHPC = 0x0C
    SUBSYSTEM_VENDOR = 0x0D
    PCIE = 0x10
    MSIX = 0x11
    SATA = 0x12
    ADVANCED_FEATURES = 0x13
    ENHANCED_ALLOCATION = 0x14


class ExtendedCapabilityID(IntEnum):
    """The ids of PCI Express's extended capabilities, from 0x100 on."""

    AER = 0x0001
    VIRTUAL_CHANNEL = 0x0002
    SERIAL_NUMBER = 0x0003
    POWER_BUDGETING = 0x0004
    VENDOR = 0x000B
    ACS = 0x000D
    ARI = 0x000E
    ATS = 0x000F
    SRIOV = 0x0010
    PRI = 0x0013
    RESIZABLE_BAR = 0x0015
    DYNAMIC_POWER = 0x0016
    TPH = 0x0017
    LATENCY_TOLERANCE = 0x0018
    SECONDARY_PCIE = 0x0019
    PASID = 0x001B
    DOWNSTREAM_CONTAINMENT = 0x001D
    L1_SUBSTATES = 0x001E
    PTM = 0x001F
    DESIGNATED_VENDOR = 0x0023
    DATA_LINK = 0x0025
    PHYSICAL_16GT = 0x0026
    DATA_OBJECT_EXCHANGE = 0x002E


@dataclass(frozen=True, slots=True, repr=False)
class PCICapability(OneLine):
    """A capability in the configuration space.

    Attributes:
        id: Which one; a plain number where this version of pyiommufd has no name for it.
        offset: Where in the configuration space it begins, in bytes.
        version: Its version; 0 where it is not extended.
        extended: Whether it is one of PCI Express's extended ones, which have numbers of their own.
    """

    id: CapabilityID | ExtendedCapabilityID | int
    offset: int
    version: int = 0
    extended: bool = False

    def _line(self) -> str:
        name = getattr(self.id, "name", f"{self.id:#x}")
        return f"{name} at {self.offset:#x}{f', version {self.version}, extended' if self.extended else ''}"


# A read and the write that follows it have to be one step: two threads may set two bits.
_changing = threading.RLock()


def _after_fork_in_child() -> None:
    global _changing
    _changing = threading.RLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)


class ConfigSpace(RegionBytes):
    """The configuration space of a PCI device. Made by `Device.config`.

    Read and written by the kernel (pread and pwrite), and never mapped. The kernel shows and takes what is safe: BARs,
    for one, hold what user space has written, and move nothing.

    Thread safety: everything here may be used from any thread.
    """

    __slots__ = ()

    def read8(self, offset: int) -> int:
        """One byte. Raises as `read` does."""
        return self.read(offset, 1)[0]

    def read16(self, offset: int) -> int:
        """2 bytes, little-endian as all of PCI. Raises as `read` does."""
        return int.from_bytes(self.read(offset, 2), "little")

    def read32(self, offset: int) -> int:
        """4 bytes, little-endian. Raises as `read` does."""
        return int.from_bytes(self.read(offset, 4), "little")

    def write8(self, offset: int, value: int) -> None:
        """One byte. Raises as `write` does; also ValueError where the value does not fit."""
        self._write(offset, value, 1)

    def write16(self, offset: int, value: int) -> None:
        """2 bytes, little-endian. Raises as `write8` does."""
        self._write(offset, value, 2)

    def write32(self, offset: int, value: int) -> None:
        """4 bytes, little-endian. Raises as `write8` does."""
        self._write(offset, value, 4)

    def _write(self, offset: int, value: int, width: int) -> None:
        offset, value = whole(offset, "offset"), whole(value, "value")
        if not 0 <= value < 1 << (8 * width):
            raise ValueError(f"{value:#x} does not fit {width} bytes")
        self.write(offset, value.to_bytes(width, "little"))

    @property
    def vendor_id(self) -> int:
        """The PCI vendor id."""
        return self.read16(_VENDOR_ID)

    @property
    def device_id(self) -> int:
        """The PCI device id."""
        return self.read16(_DEVICE_ID)

    @property
    def subsystem_vendor_id(self) -> int:
        """The vendor id of the board (subsystem)."""
        return self.read16(_SUBSYSTEM_VENDOR_ID)

    @property
    def subsystem_id(self) -> int:
        """The subsystem id, assigned by the board's vendor."""
        return self.read16(_SUBSYSTEM_ID)

    @property
    def revision_id(self) -> int:
        """The device's revision."""
        return self.read8(_REVISION_ID)

    @property
    def class_code(self) -> int:
        """Class, subclass and interface as one number of 24 bits."""
        return self.read32(_REVISION_ID) >> 8

    @property
    def header_type(self) -> int:
        """The layout of the header; bit 7: there are more functions."""
        return self.read8(_HEADER_TYPE)

    @property
    def interrupt_line(self) -> int:
        """The interrupt line register, which software may use freely."""
        return self.read8(_INTERRUPT_LINE)

    @interrupt_line.setter
    def interrupt_line(self, value: int) -> None:
        self.write8(_INTERRUPT_LINE, value)

    @property
    def interrupt_pin(self) -> int:
        """1 to 4: INTA to INTD; 0: it has no INTx."""
        return self.read8(_INTERRUPT_PIN)

    @property
    def status(self) -> int:
        """The status register."""
        return self.read16(_STATUS)

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self.read16(_COMMAND))

    @command.setter
    def command(self, value: int) -> None:
        self.write16(_COMMAND, value)

    def set_command(self, bits: Command, on: bool) -> None:
        """Set or clear bits of the command register, and leave the others as they are.

        Raises:
            TypeError: ``on`` is neither True nor False.
            OSError, ClosedError, ForkedError: As for `write`.
        """
        check_bool(on, "on")
        with _changing:
            try:
                ioctls.file_change16(self.device._live(), self.file_offset + _COMMAND, bits, on)
            except IoctlError as error:
                raise self._failed(error) from None

    def capabilities(self) -> tuple[PCICapability, ...]:
        """What the device's capabilities are and where, the extended ones last.

        Those that vfio hides from user space are not among them.

        Raises:
            OSError, ClosedError, ForkedError: As for `read`.
        """
        return walk_capabilities(self.read, self.size)

    def find(self, capability: CapabilityID | ExtendedCapabilityID) -> PCICapability | None:
        """The first capability of a kind, or None.

        Raises:
            OSError, ClosedError, ForkedError: As for `read`.
        """
        extended = isinstance(capability, ExtendedCapabilityID)
        found = (one for one in self.capabilities() if one.extended == extended and one.id == capability)
        return next(found, None)


def walk_capabilities(read: Callable[[int, int], bytes], size: int) -> tuple[PCICapability, ...]:
    """The capabilities of a configuration space; a list with an invalid or repeated pointer ends there.

    read: the bytes at an offset, so many of them.
    """
    found: list[PCICapability] = []
    seen = set()

    def word(offset: int, width: int) -> int:
        return int.from_bytes(read(offset, width), "little")

    offset = word(_CAPABILITIES, 1) & 0xFC if word(_STATUS, 2) & _STATUS_HAS_CAPABILITIES else 0
    while _HEADER_SIZE <= offset < _STANDARD_SIZE and offset not in seen:
        seen.add(offset)
        header = word(offset, 2)
        if header & 0xFF == 0xFF:
            break
        if header & 0xFF:
            found.append(PCICapability(_named(CapabilityID, header & 0xFF), offset))
        offset = header >> 8 & 0xFC
    offset = _STANDARD_SIZE
    while _STANDARD_SIZE <= offset <= size - 4 and offset not in seen:
        seen.add(offset)
        header = word(offset, 4)
        if header in (0, 0xFFFF_FFFF):
            break
        # Number 0 with a next one: the kernel hides what is there.
        if header & 0xFFFF:
            name = _named(ExtendedCapabilityID, header & 0xFFFF)
            found.append(PCICapability(name, offset, header >> 16 & 0xF, extended=True))
        offset = header >> 20 & 0xFFC
    return tuple(found)


def _named(names: type[CapabilityID | ExtendedCapabilityID], number: int) -> CapabilityID | ExtendedCapabilityID | int:
    try:
        return names(number)
    except ValueError:
        return number
