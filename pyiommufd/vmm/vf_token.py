"""The VF token of devices that are handed over: who takes it, and whether it is the right one."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Sequence

from pyiommufd.errors import DeviceNotFoundError, Fix, HandoverError, IoctlError
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.vf_token import takes_token
from pyiommufd.kernel.device.device_file import DeviceFile
from pyiommufd.uapi import ioctls

TOKEN_VARIABLE = "PYIOMMUFD_VF_TOKEN"  # noqa: S105 - its name, not a secret
"""The environment variable that tells a started program the VF token, where there is one."""

_LEAVE_OUT = Fix("leave vf_token= out", "leave --vf-token out")


def token_fds(fds: Sequence[int], devices: Iterable[HostDevice]) -> list[int]:
    """The fds of the devices that take a VF token.

    Args:
        fds: As in `Handover.fds`: the iommufd's first, then those of the devices.
        devices: The devices.
    """
    return [fd for fd, device in zip(fds[1:], devices, strict=True) if takes_token(device)]


def check_token(devices: Sequence[HostDevice], token: uuid.UUID | None) -> None:
    """Refuse a VF token that is missing, wrong or of no use for the bind of these devices, as far as can be told.

    Args:
        devices: The devices that are to be handed over.
        token: The token for them, or None.

    Raises:
        HandoverError: It names the device, and what to do.
    """
    takers = [device for device in devices if takes_token(device)]
    if token is not None and not takers:
        names = ", ".join(device.name for device in devices)
        raise HandoverError(
            f"a VF token is for a physical function, or for a virtual function whose physical function is on a vfio "
            f"driver; of {names} the kernel would refuse it",
            _LEAVE_OUT,
        )
    for device in takers:
        physical = device.physical_function
        # Never with the token first: of a physical function without users below it that would set it.
        answer = _answer(device, None)
        if answer is None and physical is not None:
            answer = errno.EACCES  # its node is not there yet, or not ours to open: as newer kernels have it
        elif answer == errno.EACCES and token is not None:
            answer = _answer(device, token)
            if answer == errno.EACCES:
                raise HandoverError(f"{device.name}: the VF token is not the one that {physical or device}'s user set")
        elif token is not None and physical is not None:
            raise HandoverError(
                f"{device.name}: this kernel is an older one that takes no VF token with iommufd, and would refuse it",
                _LEAVE_OUT,
            )
        if answer == errno.EACCES and token is None:
            if physical is None:
                why = "it has virtual functions in use, and they share a VF token"
            else:
                why = f"its physical function {physical.name} is on {physical.driver}: its user has set a VF token"
            raise HandoverError(f"{device.name}: {why}", Fix("name it by vf_token=", "name it by --vf-token"))


def _answer(device: HostDevice, token: uuid.UUID | None) -> int | None:
    """What the kernel answers to a bind to an iommufd that is none, an errno; None: the device could not be opened.

    It looks at the token first (Linux 7.3, drivers/vfio/device_cdev.c, vfio_df_ioctl_bind_iommufd), and binds nothing.
    """
    try:
        file = DeviceFile(device)
    except (IoctlError, DeviceNotFoundError):
        return None
    none = ioctls.new_file()
    ioctls.file_open(none, os.devnull, os.O_RDONLY)
    with file:
        try:
            raw = None if token is None else token.bytes
            ioctls.bind(file._live(), ioctls.new_object(none), ioctls.new_file(), raw)
        except IoctlError as error:
            return error.errno
    return None
