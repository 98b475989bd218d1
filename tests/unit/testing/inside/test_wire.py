"""Frames between pytest here and pytest in the guest."""

from __future__ import annotations

from typing import Any

import pytest

from pyiommufd.testing.inside import wire


def test_messages_in_pieces() -> None:
    messages: list[dict[str, Any]] = [{"op": "a", "text": "ü\udc80\n", "list": [1, None, 2.5]}, {"op": "b"}]
    stream = b"".join(wire.encode(message) for message in messages)
    buffer, found = bytearray(), []
    for byte in stream:
        buffer.append(byte)
        while message := wire.decode(buffer):
            found.append(message)
    assert found == messages
    assert not buffer


def test_what_json_does_not_know_is_shown() -> None:
    assert wire.decode(bytearray(wire.encode({"op": "a", "value": {1}}))) == {"op": "a", "value": "{1}"}


@pytest.mark.parametrize("data", [b"\xff" * 8, b"\0\0\0\2[]", b"\0\0\0\2{}", b"\0\0\0\1{", b'\0\0\0\x0a{"op": 12}'])
def test_what_is_no_frame(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        wire.decode(bytearray(data))
