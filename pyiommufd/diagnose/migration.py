"""Why a device's migration was refused (Linux 7.3: drivers/vfio/vfio_main.c, include/uapi/linux/vfio.h)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyiommufd.errors import Cause, Fix, IoctlError, MigrationError, ioctl_error
from pyiommufd.host.rows import Row, Rows

if TYPE_CHECKING:
    from pyiommufd.kernel.device.features.migration_states import MigrationState

_FEATURE, _PRECOPY = "VFIO_DEVICE_FEATURE", "VFIO_MIG_GET_PRECOPY_INFO"
_RESET = Fix("Device.reset() leads to RUNNING", "VFIO_DEVICE_RESET leads to RUNNING")
_ALL_DATA = Fix(
    "load() all that save() wrote on a device of its kind", "write all that was read from a device of its kind"
)
_NOT_ITS_DATA = Row("the data are not complete, or more than that, or not of a device that this one is like", _ALL_DATA)

MIGRATION: Rows = {
    (_PRECOPY, errno.EINVAL): (
        Row("the device is in no PRE_COPY state",
            Fix("set_state(MigrationState.PRE_COPY) first", "move it to PRE_COPY first")),
    ),
    (_PRECOPY, errno.ENODEV): (
        Row("the stream is over: the device has been reset, or moved on", "begin another"),
    ),
}  # fmt: skip
"""Every reason for a refusal on a stream of migration data."""


def state_error(
    code: int, device: str, before: MigrationState, wanted: MigrationState, now: MigrationState
) -> MigrationError:
    """The exception for a refused change of a device's migration state.

    Args:
        code: The errno.
        device: The device's name.
        before: Its state.
        wanted: The one asked for.
        now: Its state after that.
    """
    if now.name == "ERROR":
        cause = Cause("the device failed on the way, and could not be moved to another state", "", *_RESET)
    elif before.name == now.name == "RESUMING":
        cause = _NOT_ITS_DATA.cause("the device checks them when it leaves RESUMING")
    else:
        cause = Cause("the device, or its driver, failed on the way", "dmesg may say more", "try again, or reset it")
    error = MigrationError(_FEATURE, code, f"{device} ({before.name} to {wanted.name})", (cause,))
    error.state = now
    return error


def data_error(request: str, code: int, device: str) -> MigrationError:
    """The exception for migration data that could not be read from a device or written to it.

    Args:
        request: Which of the two.
        code: The errno.
        device: The device's name.
    """
    if code == errno.ENODEV:
        cause = Cause(
            "something else ended this session: the device was reset, its state was changed, or it failed",
            fix="what was copied is of no use: begin again",
        )
    elif request == "write":
        cause = _NOT_ITS_DATA.general
    else:
        cause = Cause("the device could not give its state", "dmesg may say more")
    return MigrationError(request, code, f"the migration data of {device}", (cause,))


def precopy_error(code: int, device: str) -> IoctlError:
    """The exception for a refused VFIO_MIG_GET_PRECOPY_INFO.

    Args:
        code: The errno.
        device: The device's name.
    """
    return ioctl_error(_PRECOPY, code, device, tuple(row.general for row in MIGRATION.get((_PRECOPY, code), ())))
