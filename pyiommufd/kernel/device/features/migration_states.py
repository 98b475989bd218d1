"""The states of a device in a migration, and the paths between them that the kernel takes."""

from __future__ import annotations

from collections import deque
from enum import IntEnum, IntFlag

from pyiommufd import uapi


class MigrationFlag(IntFlag):
    """What a device can do for a migration (VFIO_MIGRATION_*)."""

    STOP_COPY = uapi.VFIO_MIGRATION_STOP_COPY
    P2P = uapi.VFIO_MIGRATION_P2P
    PRE_COPY = uapi.VFIO_MIGRATION_PRE_COPY


class MigrationState(IntEnum):
    """The states of a device in a migration (VFIO_DEVICE_STATE_*).

    Attributes:
        ERROR: It has failed, and does nothing until it is reset.
        STOP: It does not change: no DMA, no interrupt.
        RUNNING: It works; so is every device when it is bound.
        STOP_COPY: It is stopped, and its state can be read.
        RESUMING: It is stopped, and takes in the state of another.
        RUNNING_P2P: It works, but starts no DMA to other devices (`MigrationFlag.P2P`).
        PRE_COPY: It works, and what there is of its state can be read already (`MigrationFlag.PRE_COPY`).
        PRE_COPY_P2P: The same without DMA to other devices (both flags).
    """

    ERROR = uapi.VFIO_DEVICE_STATE_ERROR
    STOP = uapi.VFIO_DEVICE_STATE_STOP
    RUNNING = uapi.VFIO_DEVICE_STATE_RUNNING
    STOP_COPY = uapi.VFIO_DEVICE_STATE_STOP_COPY
    RESUMING = uapi.VFIO_DEVICE_STATE_RESUMING
    RUNNING_P2P = uapi.VFIO_DEVICE_STATE_RUNNING_P2P
    PRE_COPY = uapi.VFIO_DEVICE_STATE_PRE_COPY
    PRE_COPY_P2P = uapi.VFIO_DEVICE_STATE_PRE_COPY_P2P


_S = MigrationState

WITH_DATA = {_S.PRE_COPY: _S.RUNNING, _S.PRE_COPY_P2P: _S.RUNNING_P2P, _S.STOP_COPY: _S.STOP, _S.RESUMING: _S.STOP}
"""The states with a stream of data, each with the nearest one without."""

# The arcs that drivers carry out, with all flags; the kernel makes every other change of them (Linux 7.3,
# include/uapi/linux/vfio.h at enum vfio_device_mig_state).
_ARCS: dict[MigrationState, tuple[MigrationState, ...]] = {
    _S.ERROR: (),
    _S.STOP: (_S.RUNNING_P2P, _S.STOP_COPY, _S.RESUMING),
    _S.RUNNING: (_S.RUNNING_P2P, _S.PRE_COPY),
    _S.STOP_COPY: (_S.STOP,),
    _S.RESUMING: (_S.STOP,),
    _S.RUNNING_P2P: (_S.RUNNING, _S.STOP, _S.PRE_COPY_P2P),
    _S.PRE_COPY: (_S.RUNNING, _S.PRE_COPY_P2P),
    _S.PRE_COPY_P2P: (_S.RUNNING_P2P, _S.PRE_COPY, _S.STOP_COPY),
}
_NEEDS = {
    _S.RUNNING_P2P: MigrationFlag.P2P,
    _S.PRE_COPY: MigrationFlag.PRE_COPY,
    _S.PRE_COPY_P2P: MigrationFlag.P2P | MigrationFlag.PRE_COPY,
}
# Changes among these go on with one stream of data; every other one that leads to or from them begins or ends one.
_SAVING = frozenset((_S.PRE_COPY, _S.PRE_COPY_P2P, _S.STOP_COPY))


def supports(state: MigrationState, flags: MigrationFlag) -> bool:
    """Whether a device with these flags has a state."""
    return not _NEEDS.get(state, MigrationFlag(0)) & ~flags


def shortest_path(
    start: MigrationState, end: MigrationState, flags: MigrationFlag
) -> tuple[MigrationState, ...] | None:
    """The states that the kernel takes a device through, the last one included; None: it does not.

    A stream of data is neither begun nor ended on the way: between two states that share one the path has no others;
    any other path has none of these but at its ends. States that the device does not have are left out.
    """
    if _S.ERROR in (start, end) or not (supports(start, flags) and supports(end, flags)):
        return None
    within = start in _SAVING and end in _SAVING
    paths: deque[tuple[MigrationState, ...]] = deque([(start,)])
    while paths:
        path = paths.popleft()
        if path[-1] == end:
            return tuple(state for state in path[1:] if supports(state, flags))
        if path[-1] == start or (path[-1] in _SAVING) == within:
            paths += [(*path, state) for state in _ARCS[path[-1]] if state not in path]
    return None


def no_path(now: MigrationState, state: MigrationState, flags: MigrationFlag) -> str:
    """Why there is no path, and what there is."""
    names = ", ".join(flag.name or "" for flag in MigrationFlag if flag & flags)
    text = f"no path leads from {now.name} to {state.name} (the device supports {names})"
    if now == _S.ERROR:
        return f"{text}: reset() leads out of ERROR, to RUNNING"
    if state == _S.ERROR:
        return f"{text}: no device is moved to ERROR, it is there where it failed"
    if not supports(state, flags):
        missing = " and ".join(flag.name or "" for flag in MigrationFlag if flag & _NEEDS[state] & ~flags)
        return f"{text}: that state takes a driver with {missing}"
    way = (_S.STOP, *(shortest_path(_S.STOP, state, flags) or ()))  # from STOP_COPY: all else has a path
    names = " -> ".join(one.name for one in way)
    return f"{text}: a stream that has been stopped does not go on; this begins another: {names}"
