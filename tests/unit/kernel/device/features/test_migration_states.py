"""The states of a migration: which path the kernel takes from one to another, without a kernel."""

from __future__ import annotations

import itertools
from typing import TypeAlias

import pytest

from pyiommufd import MigrationFlag, MigrationPathError, MigrationState
from pyiommufd.kernel.device.features.migration_states import no_path, shortest_path, supports

S: TypeAlias = MigrationState
ALL = MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY

# What the kernel does with a device that has all states (Linux 7.3, drivers/vfio/vfio_main.c, vfio_from_fsm_table):
# from, to, and those on the way. What is not here is refused.
PATHS = """
STOP RUNNING RUNNING_P2P
STOP PRE_COPY RUNNING_P2P RUNNING
STOP PRE_COPY_P2P RUNNING_P2P
STOP STOP_COPY
STOP RESUMING
STOP RUNNING_P2P
RUNNING STOP RUNNING_P2P
RUNNING PRE_COPY
RUNNING PRE_COPY_P2P RUNNING_P2P
RUNNING STOP_COPY RUNNING_P2P STOP
RUNNING RESUMING RUNNING_P2P STOP
RUNNING RUNNING_P2P
PRE_COPY STOP RUNNING RUNNING_P2P
PRE_COPY RUNNING
PRE_COPY PRE_COPY_P2P
PRE_COPY STOP_COPY PRE_COPY_P2P
PRE_COPY RESUMING RUNNING RUNNING_P2P STOP
PRE_COPY RUNNING_P2P RUNNING
PRE_COPY_P2P STOP RUNNING_P2P
PRE_COPY_P2P RUNNING RUNNING_P2P
PRE_COPY_P2P PRE_COPY
PRE_COPY_P2P STOP_COPY
PRE_COPY_P2P RESUMING RUNNING_P2P STOP
PRE_COPY_P2P RUNNING_P2P
STOP_COPY STOP
STOP_COPY RUNNING STOP RUNNING_P2P
STOP_COPY RESUMING STOP
STOP_COPY RUNNING_P2P STOP
RESUMING STOP
RESUMING RUNNING STOP RUNNING_P2P
RESUMING PRE_COPY STOP RUNNING_P2P RUNNING
RESUMING PRE_COPY_P2P STOP RUNNING_P2P
RESUMING STOP_COPY STOP
RESUMING RUNNING_P2P STOP
RUNNING_P2P STOP
RUNNING_P2P RUNNING
RUNNING_P2P PRE_COPY RUNNING
RUNNING_P2P PRE_COPY_P2P
RUNNING_P2P STOP_COPY STOP
RUNNING_P2P RESUMING STOP
"""


def kernels() -> dict[tuple[S, S], tuple[S, ...]]:
    paths: dict[tuple[S, S], tuple[S, ...]] = {(state, state): () for state in S if state != S.ERROR}
    for line in PATHS.split("\n")[1:-1]:
        start, end, *between = (getattr(S, name) for name in line.split())
        paths[start, end] = (*between, end)
    return paths


@pytest.mark.parametrize(
    "flags",
    [MigrationFlag.STOP_COPY | MigrationFlag(others) for others in (0, 2, 4, 6)],
)
def test_paths_are_the_kernels(flags: MigrationFlag) -> None:
    """States that the device lacks cannot be asked for, and are passed over."""
    known = kernels()
    for start, end in itertools.product(S, S):
        expected: tuple[S, ...] | None = None
        if (start, end) in known and supports(start, flags) and supports(end, flags):
            expected = tuple(state for state in known[start, end] if supports(state, flags))
        assert shortest_path(start, end, flags) == expected, (start.name, end.name)


def test_without_any_optional_state() -> None:
    assert shortest_path(S.RUNNING, S.STOP_COPY, MigrationFlag.STOP_COPY) == (S.STOP, S.STOP_COPY)
    assert shortest_path(S.RUNNING, S.PRE_COPY, MigrationFlag.STOP_COPY) is None


@pytest.mark.parametrize(
    ("start", "end", "flags", "says"),
    [
        (S.ERROR, S.RUNNING, ALL, "reset() leads out of ERROR, to RUNNING"),
        (S.RUNNING, S.ERROR, ALL, "no device is moved to ERROR, it is there where it failed"),
        (S.RUNNING, S.PRE_COPY_P2P, MigrationFlag.STOP_COPY, "that state takes a driver with P2P and PRE_COPY"),
        (S.STOP_COPY, S.PRE_COPY_P2P, ALL, "this begins another: STOP -> RUNNING_P2P -> PRE_COPY_P2P"),
    ],
)
def test_what_is_said_where_there_is_no_path(start: S, end: S, flags: MigrationFlag, says: str) -> None:
    assert shortest_path(start, end, flags) is None
    text = no_path(start, end, flags)
    assert text.startswith(f"no path leads from {start.name} to {end.name} (the device supports STOP_COPY")
    assert text.endswith(says)


def test_error_is_told_from_an_oserror() -> None:
    error = MigrationPathError("no way", S.STOP_COPY, S.PRE_COPY)
    assert str(error) == "no way"
    assert (error.state, error.wanted) == (S.STOP_COPY, S.PRE_COPY)
    assert not isinstance(error, OSError)
