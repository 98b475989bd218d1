"""The VF token of devices that are handed over: who takes it, and whether it is the right one."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Sequence

from pyiommufd.diagnose import fixes
from pyiommufd.errors import DeviceNotFoundError, Fix, HandoverError, IoctlError
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.vf_token import takes_token
from pyiommufd.host.holders import holders
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
        devices: The devices that are to be handed over, in the order in which they will be bound.
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
    for place, device in enumerate(takers):
        physical = device.physical_function
        # Never with the token first: of a physical function without users below it that would set it.
        answer = _answer(device, None)
        if answer is None and physical is not None:
            answer = errno.EACCES  # its node is not there yet, or not ours to open: as newer kernels have it
        elif answer == errno.EACCES and token is not None:
            answer = _answer(device, token)
            if answer == errno.EACCES and physical not in takers[:place]:  # whose bind sets it
                raise _wrong_token(device, handed_over=physical in takers)
        elif token is not None and physical is not None:
            raise HandoverError(
                f"{device.name}: this kernel is an older one that takes no VF token with iommufd, and would refuse it",
                _LEAVE_OUT,
            )
        if answer == errno.EACCES and token is None:
            raise _missing_token(device, handed_over=physical in takers)


def _wrong_token(device: HostDevice, *, handed_over: bool) -> HandoverError:
    physical = device.physical_function
    if physical is None:
        return HandoverError(f"{device.name}: the VF token is not the one that users of its virtual functions gave")
    wrong = f"{device.name}: the VF token is not the one that {physical}'s user set"
    if handed_over:
        return HandoverError(f"{wrong}, and the bind of {physical} would set it too late: name {physical} before it")
    if holders(physical):
        return HandoverError(wrong)
    return HandoverError(f"{wrong}: nobody is seen to hold that", fixes.set_token(physical.name))


def _missing_token(device: HostDevice, *, handed_over: bool) -> HandoverError:
    physical, name_it = device.physical_function, Fix("name it by vf_token=", "name it by --vf-token")
    if physical is None:
        return HandoverError(f"{device.name}: it has virtual functions in use, and they share a VF token", name_it)
    why = f"{device.name}: its physical function {physical} is on {physical.driver}"
    if handed_over:
        one = "which its bind sets before"
        return HandoverError(f"{why}: it takes a VF token", Fix(f"give vf_token=, {one}", f"give --vf-token, {one}"))
    if holders(physical):
        return HandoverError(f"{why}: its user has set a VF token", name_it)
    return HandoverError(
        f"{why}, and nobody is seen to hold that: its VF token is not known", fixes.set_token(physical.name)
    )


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
