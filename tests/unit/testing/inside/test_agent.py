"""What goes over the agent's port."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiommufd.testing.inside import agent
from pyiommufd.testing.inside.agent import decode, encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | TEXT | st.binary()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=8)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=4).filter(lambda m: depth(m) < 8), max_size=3), st.data())
def test_messages_survive_any_division(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(map(encode, messages))
    buffer, got = bytearray(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        buffer += stream[:size]
        stream = stream[size:]
        while (message := decode(buffer)) is not None:
            got.append(message)
    assert got == messages
    assert not buffer


def test_types_come_back_as_they_were() -> None:
    message = decode(bytearray(encode({"a": True, "b": 1, "c": "x", "d": b"x", "e": None, "f": [False, 0]})))
    assert message is not None
    assert [type(value) for value in message.values()] == [bool, int, str, bytes, type(None), list]
    assert [type(value) for value in message["f"]] == [bool, int]


def test_arguments_that_are_no_utf8() -> None:
    argument = b"\xff\xfe".decode(errors="surrogateescape")
    assert decode(bytearray(encode({"argv": [argument]}))) == {"argv": [argument]}


@given(st.binary(max_size=64))
def test_rubbish_is_a_value_error_or_incomplete(rubbish: bytes) -> None:
    frame = bytearray(len(rubbish).to_bytes(4, "big") + rubbish)
    try:
        message = decode(frame)
    except ValueError:
        return
    # It may happen to be a message; then it is one to the last byte.
    assert message is not None
    assert not frame


@pytest.mark.parametrize(
    "body",
    [b"", b"i5;", b"d1;i1;i2;x", b"s9;short", b"d-1;", b"x1;", b"l1;", b"d2;n", b"d1;n" + b"l1;" * 20 + b"n"],
)
def test_body_that_is_no_message(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decode(bytearray(len(body).to_bytes(4, "big") + body))
    assert caught.type is ValueError


def test_frame_too_large_is_refused_before_it_is_there() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        decode(bytearray(b"\xff\xff\xff\xff"))


def test_what_cannot_be_sent_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="float"):
        encode({"x": 1.5})


def test_agent_imports_nothing_slow() -> None:
    # Each of these costs an emulated CPU as much as mounting all folders does.
    code = (
        f"import sys; before = set(sys.modules); source = open({agent.__file__!r}).read()\n"
        "exec(compile(source, 'agent', 'exec'), {'__name__': 'agent'}); print(*set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    frozen = {"os", "os.path", "posixpath", "genericpath", "stat", "_stat", "_collections_abc", "abc", "_abc"}
    assert set(result.stdout.split()) <= {"__future__", "select", "time"} | frozen
