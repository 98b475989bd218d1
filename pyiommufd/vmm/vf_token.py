"""VF tokens: the secret that the users of a physical function and of its virtual functions share.

The kernel wants it at the bind of a virtual function whose physical function is on a vfio driver too. The user of that
one has set it, by a bind with a token or by VFIO_DEVICE_FEATURE_PCI_VF_TOKEN; until then it is a random one. Kernels
from before VFIO_DEVICE_BIND_FLAG_TOKEN, such as 6.12, want none with iommufd, and refuse one.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Sequence

from pyiommufd.errors import DeviceNotFoundError, Fix, HandoverError, IoctlError
from pyiommufd.host.discovery.devices import HostDevice, from_sys_path
from pyiommufd.kernel.device.device_file import DeviceFile
from pyiommufd.uapi import ioctls

TOKEN_VARIABLE = "PYIOMMUFD_VF_TOKEN"  # noqa: S105 - its name, not a secret
"""The environment variable that tells a started program the VF token, where there is one."""

_LEAVE_OUT = Fix("leave vf_token= out", "leave --vf-token out")


def as_token(token: uuid.UUID | str | None) -> uuid.UUID | None:
    """The token as a UUID.

    Raises:
        ValueError, TypeError: It is none.
    """
    if token is None or isinstance(token, uuid.UUID):
        return token
    if not isinstance(token, str):
        raise TypeError(f"a VF token is a UUID, not {type(token).__name__}")
    try:
        return uuid.UUID(token)
    except ValueError:
        raise ValueError(f"{token!r} is not a UUID, which a VF token has to be") from None


def takes_token(device: HostDevice) -> bool:
    """Whether the kernel takes a VF token at the bind of this device; for others it answers EINVAL.

    It does for a virtual function whose physical function is on a vfio driver, and for a physical function: that one's
    token is set by it.
    """
    if (device.sys_path / "physfn").exists():
        physical = _physical_function(device)
        return physical is not None and physical.on_vfio
    return (device.sys_path / "sriov_totalvfs").exists()


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
        physical = _physical_function(device)
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


def _physical_function(device: HostDevice) -> HostDevice | None:
    """The physical function of a virtual one; None for what is no virtual function."""
    try:
        return from_sys_path((device.sys_path / "physfn").resolve(strict=True))
    except (OSError, DeviceNotFoundError):
        return None


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
