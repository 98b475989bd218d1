"""The stream of a device's data, read and written by hand, and what ends it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import ClosedError, Device, ForkedError, IoctlError
from tests.guest.kernel.device.features.mtty import HEADER, SIZE, S, saved


def test_stream_by_hand(serial: Device, data_files: Callable[[], list[str]]) -> None:
    migration = serial.migration
    with pytest.raises(ClosedError, match="RUNNING"):
        _ = migration.stream
    migration.set_state(S.PRE_COPY)
    stream = migration.stream
    info = migration.precopy_info()
    assert (info.initial_bytes, info.dirty_bytes, info.reinit) == (HEADER, 0, False)
    assert len(stream.read(10) + stream.read()) == HEADER
    assert stream.read() == b"", "all that there is for now"
    assert migration.precopy_info().initial_bytes == 0
    migration.set_state(S.STOP_COPY)
    assert migration.stream is stream, "the same stream goes on"
    assert len(stream.read()) == SIZE - HEADER
    assert stream.read(1) == b"", "the end"
    with pytest.raises(IoctlError, match="EINVAL") as caught:
        migration.precopy_info()
    assert "PRE_COPY" in caught.value.causes[0].summary
    with pytest.raises(io.UnsupportedOperation):
        stream.write(b"x")
    assert len(data_files()) == 1
    migration.set_state(S.STOP)
    assert stream.closed
    assert data_files() == []


def test_stream_of_a_device_that_resumes(serial: Device) -> None:
    migration, data = serial.migration, saved(serial)
    migration.set_state(S.RESUMING)
    stream = migration.stream
    with pytest.raises(io.UnsupportedOperation):
        stream.read()
    with pytest.raises(io.UnsupportedOperation):
        migration.precopy_info()
    for at in range(0, SIZE, 7):
        stream.write(data[at : at + 7])
    migration.set_state(S.RUNNING)
    assert saved(serial) == data
    migration.set_state(S.RESUMING)
    migration.stream.close()
    with pytest.raises(ClosedError, match="is closed, or with another process or object"):
        _ = migration.stream
    serial.reset()


def test_reset_ends_a_stream(serial: Device, data_files: Callable[[], list[str]]) -> None:
    serial.migration.set_state(S.STOP_COPY)
    stream = serial.migration.stream
    serial.reset()
    assert stream.closed
    assert data_files() == []
    assert serial.migration.state == S.RUNNING
    with pytest.raises(ClosedError):
        stream.read()


def test_closing_the_device_ends_a_stream(serial: Device, data_files: Callable[[], list[str]]) -> None:
    serial.migration.set_state(S.PRE_COPY)
    stream = serial.migration.stream
    serial.close()
    assert stream.closed
    assert data_files() == []
    with pytest.raises(ClosedError):
        _ = serial.migration.state


def test_forked_child(serial: Device, in_child: Callable[[Callable[[], Any]], Any]) -> None:
    serial.migration.set_state(S.STOP_COPY)
    stream = serial.migration.stream

    def use() -> list[str]:
        errors = []
        for call in (lambda: serial.migration.state, stream.read):
            try:
                call()
            except ForkedError as error:
                errors.append(type(error).__name__)
        serial.close()
        return [*errors, str(stream.closed)]

    assert in_child(use) == ["ForkedError", "ForkedError", "True"]
    assert len(stream.read()) == SIZE
