"""Records of event queues: their fields, and what is missing between them."""

from __future__ import annotations

import struct

import pytest

from pyiommufd import LostEvents, RawEvent, SMMUv3Event, SMMUv3EventType, Tegra241Errors, VEvent, VEventType
from pyiommufd.kernel.virtual.events import decode_events, event_size, is_earlier, next_sequence


def decoded(event_type: int, sequence: int, data: bytes, *, expected: int = 0, flags: int = 0) -> list[VEvent]:
    return list(decode_events(event_type, struct.pack("=2I", flags, sequence) + data, expected))


def test_an_event_of_an_smmu() -> None:
    words = (0x10 | 1 << 11 | 0x123 << 12 | 0x77 << 32, 1 << 35, 0xDEAD000, 0)
    [event] = decoded(VEventType.ARM_SMMUV3, 0, struct.pack("<4Q", *words))
    assert event == SMMUv3Event(0, words)
    assert isinstance(event, SMMUv3Event)
    assert (event.type, event.stream_id, event.substream_id) == (SMMUv3EventType.F_TRANSLATION, 0x77, 0x123)
    assert (event.address, event.is_write, event.second_stage) == (0xDEAD000, False, False)
    assert repr(event) == "<SMMUv3Event F_TRANSLATION of stream 0x77, PASID 291, read at 0xdead000>"


def test_an_event_that_is_of_no_access() -> None:
    event = SMMUv3Event(3, (0x0A | 5 << 32, 1 << 39, 0x1234, 0))
    assert (event.type, event.stream_id, event.substream_id) == (SMMUv3EventType.C_BAD_CD, 5, None)
    assert (event.address, event.is_write, event.second_stage) == (None, None, True)
    assert repr(event) == "<SMMUv3Event C_BAD_CD of stream 0x5>"
    assert repr(SMMUv3Event(3, (0xEE, 0, 0, 0))) == "<SMMUv3Event type 0xee of stream 0x0>"


def test_errors_of_a_tegra() -> None:
    [event] = decoded(VEventType.TEGRA241_CMDQV, 0, struct.pack("<2Q", 0b101, 1 << 63))
    assert event == Tegra241Errors(0, (0, 2, 127))


@pytest.mark.parametrize("event_type", [VEventType.ARM_SMMUV3, 0xBEEF])
def test_what_has_another_size_stays_bytes(event_type: int) -> None:
    assert decoded(event_type, 0, b"12345678") == [RawEvent(0, event_type, b"12345678")]


def test_sizes() -> None:
    assert [event_size(one) for one in (VEventType.ARM_SMMUV3, VEventType.TEGRA241_CMDQV, 0xBEEF)] == [32, 16, None]


def test_what_is_missing_is_told_before_the_next_one() -> None:
    assert decoded(9, 5, b"abcd", expected=5) == [RawEvent(5, 9, b"abcd")]
    assert decoded(9, 5, b"abcd", expected=2) == [LostEvents(4, 3), RawEvent(5, 9, b"abcd")]


def test_the_kernels_own_sign_of_loss() -> None:
    assert decoded(9, 7, b"", expected=5, flags=1) == [LostEvents(7, 3)]


def test_the_numbers_wrap() -> None:
    assert [is_earlier(one, other) for one, other in ((1, 2), (2, 1), (1, 1), (0x7FFF_FFFF, 0), (0, 0x7FFF_FFFF))] == [
        True, False, False, True, False,
    ]  # fmt: skip
    assert next_sequence(0x7FFF_FFFF) == 0
    assert decoded(9, 1, b"abcd", expected=0x7FFF_FFFF) == [LostEvents(0, 2), RawEvent(1, 9, b"abcd")]
