"""The states of a device that can be migrated, and the ways from one to another."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import (
    Device,
    IoctlError,
    MigrationError,
    MigrationFlag,
    MigrationPathError,
    UnsupportedError,
    uapi,
)
from pyiommufd.uapi import device_ioctls, raw
from tests.guest.kernel.device.features.mtty import SIZE, WITH_DATA, S, bring, saved
from tests.guest.threads import run_all


def set_raw(device: Device, state: int) -> int:
    """The kernel's own answer: 0, or the errno. Data fds are closed again."""
    given = struct.pack("=Ii", state, -1)
    command = raw.struct("vfio_device_feature", tail=given)
    command.argsz = len(command) + len(given)
    command.flags = uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | uapi.VFIO_DEVICE_FEATURE_SET
    try:
        raw.ioctl(device.fileno(), uapi.VFIO_DEVICE_FEATURE, command)
    except IoctlError as error:
        return error.errno or 0
    fd = struct.unpack("=Ii", command.memory[-8:])[1]
    if fd >= 0:
        os.close(fd)
    return 0


STARTS = [state for state in S if state != S.ERROR]  # nothing has an mtty fail


@pytest.mark.parametrize("start", STARTS)
def test_every_arc_is_as_the_kernel_has_it(
    start: S, serial: Device, data_files: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    migration, data = serial.migration, saved(serial)
    asked: list[bytes] = []
    real = device_ioctls.feature_files

    def spy(fd: Any, number: int, op: int, data: bytes, *rest: Any, **named: Any) -> bytes:
        if op == uapi.VFIO_DEVICE_FEATURE_SET:
            asked.append(data)
        return real(fd, number, op, data, *rest, **named)

    for end in S:
        bring(serial, start, data)
        refused = set_raw(serial, end)
        assert migration.state == (start if refused else end)
        bring(serial, start, data)
        with monkeypatch.context() as patch:
            patch.setattr(device_ioctls, "feature_files", spy)
            asked.clear()
            if refused:
                with pytest.raises(MigrationPathError, match=f"from {start.name} to {end.name}") as caught:
                    migration.set_state(end)
                assert (caught.value.state, caught.value.wanted) == (start, end)
                assert not asked, "the kernel was not asked"
                assert migration.state == start
            else:
                path = migration.path(end)
                migration.set_state(end)
                assert asked == ([struct.pack("=Ii", end, -1)] if path else [])
                assert migration.state == end
                assert len(data_files()) == (end in WITH_DATA)
    serial.reset()


def test_each_step_of_a_path_is_one_of_the_kernels(serial: Device) -> None:
    migration, data = serial.migration, saved(serial)
    for start, end in itertools.permutations(STARTS, 2):
        bring(serial, start, data)
        with contextlib.suppress(MigrationPathError):
            for state in migration.path(end):
                assert migration.path(state) == (state,)
                migration.set_state(state)
            assert migration.state == end
    serial.reset()


def test_refusal_names_a_way(serial: Device) -> None:
    serial.migration.set_state(S.STOP_COPY)
    with pytest.raises(MigrationPathError) as caught:
        serial.migration.set_state(S.PRE_COPY)
    assert "supports STOP_COPY, P2P, PRE_COPY" in str(caught.value)
    assert str(caught.value).endswith("STOP -> RUNNING_P2P -> RUNNING -> PRE_COPY")
    with pytest.raises(TypeError, match="MigrationState"):
        serial.migration.set_state(2)  # type: ignore[arg-type]


def test_devices_without_migration_are_refused_by_name(device: Device) -> None:
    for ask in (
        lambda: device.migration.flags,
        lambda: device.migration.state,
        lambda: device.migration.data_size,
        lambda: device.migration.set_state(S.STOP),
        lambda: device.migration.save(io.BytesIO()),
        lambda: device.migration.load(io.BytesIO()),
    ):
        with pytest.raises(UnsupportedError, match=f"{device.name} does not have MIG"):
            ask()


def test_what_a_device_can_do(serial: Device) -> None:
    assert serial.migration.flags == MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY
    assert serial.migration.state == S.RUNNING
    assert serial.migration.data_size == SIZE


def test_resuming_is_not_left_without_the_data(serial: Device) -> None:
    serial.migration.set_state(S.RESUMING)
    with pytest.raises(MigrationError, match="RESUMING to RUNNING") as caught:
        serial.migration.set_state(S.RUNNING)
    assert caught.value.state == serial.migration.state == S.RESUMING
    serial.reset()


def test_threads_change_states_one_after_the_other(serial: Device, data_files: Callable[[], list[str]]) -> None:
    def go(*states: S) -> None:
        for state in states * 25:
            with contextlib.suppress(MigrationPathError):
                serial.migration.set_state(state)

    run_all([
        lambda: go(S.STOP_COPY, S.STOP),
        lambda: go(S.PRE_COPY, S.RUNNING),
        lambda: go(S.PRE_COPY_P2P, S.RUNNING_P2P),
    ])  # fmt: skip
    assert len(data_files()) == (serial.migration.state in WITH_DATA)
