"""What an IOMMU reports of a VM's devices: the records of event queues, typed by the IOMMU that they are of."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from pyiommufd import uapi
from pyiommufd.printable import OneLine


class VEventType(IntEnum):
    """The kinds of events, which are those of vIOMMUs (IOMMU_VEVENTQ_TYPE_*)."""

    ARM_SMMUV3 = uapi.IOMMU_VEVENTQ_TYPE_ARM_SMMUV3
    TEGRA241_CMDQV = uapi.IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV


class SMMUv3EventType(IntEnum):
    """The events of an SMMUv3 that a VM gets (Arm IHI 0070, 7.3)."""

    C_BAD_STREAMID = 0x02
    F_STE_FETCH = 0x03
    C_BAD_STE = 0x04
    F_STREAM_DISABLED = 0x06
    C_BAD_SUBSTREAMID = 0x08
    F_CD_FETCH = 0x09
    C_BAD_CD = 0x0A
    F_WALK_EABT = 0x0B
    F_TRANSLATION = 0x10
    F_ADDR_SIZE = 0x11
    F_ACCESS = 0x12
    F_PERMISSION = 0x13
    F_VMS_FETCH = 0x25


_WITH_ADDRESS = frozenset(
    (
        SMMUv3EventType.F_WALK_EABT,
        SMMUv3EventType.F_TRANSLATION,
        SMMUv3EventType.F_ADDR_SIZE,
        SMMUv3EventType.F_ACCESS,
        SMMUv3EventType.F_PERMISSION,
    )
)


@dataclass(frozen=True, slots=True, repr=False)
class SMMUv3Event(OneLine):
    """An event of an SMMUv3 (struct iommu_vevent_arm_smmuv3; Arm IHI 0070, 7).

    Attributes:
        sequence: Its number in the queue; after 0x7fffffff comes 0.
        words: The four words of the record.
    """

    sequence: int
    words: tuple[int, int, int, int]

    @property
    def type(self) -> SMMUv3EventType | int:
        """What has happened: a `SMMUv3EventType`, or the number of one that is not known here."""
        number = self.words[0] & 0xFF
        try:
            return SMMUv3EventType(number)
        except ValueError:
            return number

    @property
    def stream_id(self) -> int:
        """Which device: its `VDevice.virtual_id`."""
        return self.words[0] >> 32

    @property
    def substream_id(self) -> int | None:
        """The PASID of the access; None: without one."""
        return self.words[0] >> 12 & 0xFFFFF if self.words[0] >> 11 & 1 else None

    @property
    def address(self) -> int | None:
        """The address that the device sent; None: the event is of none."""
        return self.words[2] if self.type in _WITH_ADDRESS else None

    @property
    def is_write(self) -> bool | None:
        """Whether the access was a write; None: the event is of no access."""
        return not self.words[1] >> 35 & 1 if self.type in _WITH_ADDRESS else None

    @property
    def second_stage(self) -> bool:
        """Whether stage 2 failed; else it was the VM's own stage 1."""
        return bool(self.words[1] >> 39 & 1)

    def _line(self) -> str:
        kind = self.type
        name = kind.name if isinstance(kind, SMMUv3EventType) else f"type {kind:#x}"
        at = "" if self.address is None else f", {'write' if self.is_write else 'read'} at {self.address:#x}"
        pasid = "" if self.substream_id is None else f", PASID {self.substream_id}"
        return f"{name} of stream {self.stream_id:#x}{pasid}{at}"


@dataclass(frozen=True, slots=True, repr=False)
class Tegra241Errors(OneLine):
    """Command queues of a Tegra241 that are in error (struct iommu_vevent_tegra241_cmdqv).

    Attributes:
        sequence: Its number in the queue.
        queues: Their numbers in the virtual interface.
    """

    sequence: int
    queues: tuple[int, ...]


@dataclass(frozen=True, slots=True, repr=False)
class LostEvents(OneLine):
    """Events have been lost, as the queue was full: it stands where they would.

    Attributes:
        sequence: The number of the last one of them.
        count: How many.
    """

    sequence: int
    count: int


@dataclass(frozen=True, slots=True, repr=False)
class RawEvent(OneLine):
    """An event of a type that is not typed here.

    Attributes:
        sequence: Its number in the queue.
        type: The type of the queue.
        data: The bytes of the event.
    """

    sequence: int
    type: int
    data: bytes


VEvent: TypeAlias = SMMUv3Event | Tegra241Errors | RawEvent | LostEvents
"""What an event queue holds: what it was made for, or that something has been lost."""

_SIZES: Mapping[int, int] = {VEventType.ARM_SMMUV3: 32, VEventType.TEGRA241_CMDQV: 16}
_HEADER = struct.Struct("=2I")  # struct iommufd_vevent_header
HEADER = _HEADER.size
"""Bytes before each event."""
_LAST = 0x7FFF_FFFF  # sequence numbers


def event_size(event_type: int) -> int | None:
    """Bytes of an event of a type, without the header; None where it is not known here."""
    return _SIZES.get(event_type)


def decode_events(event_type: int, data: bytes, expected: int) -> Iterator[VEvent]:
    """The events of what was read; where some are missing before one, `LostEvents` in their place.

    Args:
        event_type: The type of the queue.
        data: One header, and an event or nothing.
        expected: The sequence number of the next event.
    """
    flags, sequence = _HEADER.unpack_from(data)
    missing = sequence - expected & _LAST
    if flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS:
        yield LostEvents(sequence, missing + 1)  # no event follows
        return
    if missing:
        yield LostEvents(sequence - 1 & _LAST, missing)
    yield _decode(event_type, sequence, data[HEADER:])


def next_sequence(sequence: int) -> int:
    """The sequence number after this one."""
    return sequence + 1 & _LAST


def is_earlier(sequence: int, other: int) -> bool:
    """Whether a sequence number comes before another one, of which it is less than half of all away."""
    return (sequence - other & _LAST) > _LAST // 2


def _decode(event_type: int, sequence: int, data: bytes) -> VEvent:
    if len(data) == _SIZES.get(event_type) and event_type == VEventType.ARM_SMMUV3:
        first, second, third, fourth = struct.unpack("<4Q", data)
        return SMMUv3Event(sequence, (first, second, third, fourth))
    if len(data) == _SIZES.get(event_type) and event_type == VEventType.TEGRA241_CMDQV:
        errors = int.from_bytes(data, "little")
        return Tegra241Errors(sequence, tuple(number for number in range(128) if errors >> number & 1))
    return RawEvent(sequence, event_type, data)
