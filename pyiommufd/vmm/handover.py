"""An iommufd and devices on their way from a process that may open them to one that uses them."""

from __future__ import annotations

import array
import os
import socket
import uuid
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Self

from pyiommufd.closing import Closing
from pyiommufd.errors import CloseError, HandoverError
from pyiommufd.host.discovery.devices import HostDevice, as_devices
from pyiommufd.host.discovery.vf_token import as_token, takes_token
from pyiommufd.host.holders import holders
from pyiommufd.kernel.device.device_file import DeviceFile
from pyiommufd.kernel.handle import check_unowned
from pyiommufd.kernel.iommufd import IOMMUFD
from pyiommufd.vmm.vf_token import TOKEN_VARIABLE

VARIABLE = "PYIOMMUFD_FDS"
"""The environment variable that tells a started program its fds: numbers with blanks between, the iommufd's first."""

_MOST = 253  # SCM_MAX_FD (Linux 7.3, include/net/scm.h): how many fds one message carries


class Handover(Closing):
    """An iommufd and unbound device files to be passed to another process. A context manager.

    Leaving it closes them. So does handing them on: a copy that is forgotten keeps the devices bound. Whoever gets
    them needs no node, no path and no privilege: it binds, attaches and maps with the two kinds of fds alone.

    Args:
        iommufd: The iommufd; closed with this object.
        devices: The open, unbound devices; closed with it, too.
        vf_token: The VF token that those of the devices are to be bound with that take one; see `token_of`. One for
            all of them.

    Raises:
        ValueError, TypeError: The token is no UUID.
    """

    def __init__(
        self, iommufd: IOMMUFD, devices: Iterable[DeviceFile], *, vf_token: uuid.UUID | str | None = None
    ) -> None:
        self._vf_token = None if vf_token is None else as_token(vf_token)
        self._iommufd = iommufd
        self._devices = tuple(devices)

    @classmethod
    def open(
        cls,
        devices: Iterable[HostDevice | str | Path] | HostDevice | str | Path,
        *,
        vf_token: uuid.UUID | str | None = None,
    ) -> Self:
        """Open a new iommufd, and devices that are on a vfio driver. It takes the rights to the nodes.

        Args:
            devices: What to open: `HostDevice` objects, names or paths; or one of these.
            vf_token: The VF token for whoever gets them. A program that `VMM` starts finds it in the environment; by
                `send` it does not go.

        Raises:
            HandoverError: A process holds one of the devices; it is named.
            DeviceNotFoundError: There is no such device.
            IoctlError: A device is not on a vfio driver, or a node may not be opened.
            ValueError: No device was named, or the token is no UUID.
            TypeError: The token is neither a UUID nor a string.
        """
        vf_token = None if vf_token is None else as_token(vf_token)
        targets = as_devices(devices)
        if not targets:
            raise ValueError("no device to hand over was named")
        # It could be opened once more, and the bind would then be refused, to another process and without a reason.
        if held := holders(*targets):
            raise HandoverError("in use already: " + "; ".join(map(str, held)))
        opened: list[DeviceFile] = []
        try:
            for target in targets:
                opened.append(DeviceFile(target))
            return cls(IOMMUFD(), opened, vf_token=vf_token)
        except BaseException:
            for file in opened:
                file.close()
            raise

    @classmethod
    def receive(cls, channel: socket.socket) -> Self:
        """Take over what another process sends: by `send`, or by SCM_RIGHTS in one message with a byte of data.

        What each fd is the kernel says, so the sender's order of iommufd and devices does not matter. Waits for the
        message, as long as the socket's own time limit.

        Args:
            channel: A connected Unix socket.

        Raises:
            HandoverError: The other side has closed the socket, or has sent something else; nothing stays open.
            OSError: The socket failed; TimeoutError where its time limit has passed.
        """
        room = socket.CMSG_SPACE(_MOST * array.array("i").itemsize)
        # With close-on-exec from the start: another thread may be starting a program.
        data, ancillary, flags, _ = channel.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if not fds and not data:
            raise HandoverError("the other side has closed the socket and sent no devices")
        if flags & socket.MSG_CTRUNC:
            _close(fds)
            raise HandoverError("not every fd of the message was received: the limit on open files is too low")
        return cls._taken(fds)

    @classmethod
    def inherited(cls, environment: MutableMapping[str, str] | None = None) -> Self:
        """Take over what this process was started with, by `VMM` or ``pyiommufd run``.

        Works once: the variables `VARIABLE` and `TOKEN_VARIABLE` are taken out of the environment, and programs that
        this one starts do not get the fds.

        Args:
            environment: In place of ``os.environ``.

        Raises:
            HandoverError: Nothing was handed to this process, or a VF token that is none.
        """
        environment = os.environ if environment is None else environment
        text = environment.pop(VARIABLE, "")
        try:
            given = environment.pop(TOKEN_VARIABLE, None)
            token = None if given is None else as_token(given)
        except ValueError as error:
            raise HandoverError(f"{TOKEN_VARIABLE}: {error}") from None
        try:
            fds = list(dict.fromkeys(int(number) for number in text.split()))
        except ValueError:
            fds = []
        if not fds:
            raise HandoverError(f"no devices were handed to this process: {VARIABLE}={text!r}; see `pyiommufd run`")
        try:
            for fd in fds:
                os.set_inheritable(fd, False)
        except OSError as error:
            raise HandoverError(f"{VARIABLE}={text!r}: fd {fd} is not open") from error
        try:
            for fd in fds:
                check_unowned(fd)
        except ValueError as error:
            raise HandoverError(f"{VARIABLE}={text!r}: {error}") from None  # and they stay that object's
        return cls._taken(fds, token)

    @classmethod
    def _taken(cls, fds: Iterable[int], vf_token: uuid.UUID | None = None) -> Self:
        iommufds: list[IOMMUFD] = []
        devices: list[DeviceFile] = []
        left = list(fds)
        try:
            while left:
                try:
                    iommufds.append(IOMMUFD.from_fd(left[0]))
                except ValueError:
                    devices.append(DeviceFile.from_fd(left[0]))
                del left[0]
            if len(iommufds) != 1 or not devices:
                raise ValueError(
                    f"{len(iommufds)} iommufds and {len(devices)} devices, not one iommufd and its devices"
                )
        except BaseException as error:
            for taken in (*devices, *iommufds):
                taken.close()
            _close(left)
            if isinstance(error, ValueError):
                raise HandoverError(f"what was handed over cannot be used: {error}") from error
            raise
        return cls(iommufds[0], devices, vf_token=vf_token)

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd."""
        return self._iommufd

    @property
    def devices(self) -> tuple[DeviceFile, ...]:
        """The devices, in the order in which they were named or sent."""
        return self._devices

    @property
    def vf_token(self) -> uuid.UUID | None:
        """The VF token that came with them."""
        return self._vf_token

    def token_of(self, file: DeviceFile) -> uuid.UUID | None:
        """The VF token to bind one of the devices with: None where it takes none, or none came with them.

        For `IOMMUFD.bind`, its ``token``.
        """
        return self._vf_token if self._vf_token is not None and takes_token(file.device) else None

    @property
    def fds(self) -> tuple[int, ...]:
        """Their fds, the iommufd's first.

        Raises:
            ClosedError: They are closed, or a device has been bound.
        """
        return (self._iommufd.fileno(), *(device.fileno() for device in self._devices))

    def send(self, channel: socket.socket) -> None:
        """Send them to the process at the other end of a socket, and close them here.

        Args:
            channel: A connected Unix socket.

        Raises:
            OSError: They could not be sent; they are still open here.
            HandoverError: They are more than one message carries.
            ClosedError: They are closed, or a device has been bound.
        """
        fds = self.fds
        if len(fds) > _MOST:
            raise HandoverError(f"{len(fds)} fds are more than the {_MOST} of one message")
        socket.send_fds(channel, [bytes([len(fds)])], list(fds))
        self.close()

    def close(self) -> None:
        """Close what has not been handed on or bound; devices that were bound with its iommufd end with it.

        Does nothing the second time.

        Raises:
            CloseError: Something could not be closed; the rest is.
        """
        errors: list[BaseException] = []
        for one in (*self._devices, self._iommufd):
            try:
                one.close()
            except (OSError, CloseError) as error:
                errors += error.errors if isinstance(error, CloseError) else [error]
        if errors:
            raise CloseError("what was to be handed over was closed with errors:", tuple(errors))

    def __repr__(self) -> str:
        names = ", ".join(device.name for device in self._devices)
        return f"<Handover of {names}{' closed' if self._iommufd.closed else ''}>"


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
