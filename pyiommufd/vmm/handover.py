"""An iommufd and devices on their way from a process that may open them to one that uses them."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import CloseError, HandoverError
from ..host.devices import HostDevice, as_device
from ..host.holders import holders
from ..kernel.device_file import DeviceFile
from ..kernel.iommufd import IOMMUFD

VARIABLE = "PYIOMMUFD_FDS"
"""The environment variable that tells a started program its fds: numbers with blanks between, the iommufd's first."""

_MOST = 253  # SCM_MAX_FD (Linux 7.3, include/net/scm.h): how many fds one message carries


class Handover:
    """An iommufd and device files, unbound, of which another process is to make use. A context manager.

    Leaving it closes them. So does handing them on: a copy that is forgotten keeps the devices bound. Whoever gets
    them needs no node, no path and no privilege: it binds, attaches and maps with the two kinds of fds alone.

    Args:
        iommufd: The iommufd; closed with this object.
        devices: The open, unbound devices; closed with it, too.
    """

    def __init__(self, iommufd: IOMMUFD, devices: Iterable[DeviceFile]) -> None:
        self._iommufd = iommufd
        self._devices = tuple(devices)

    @classmethod
    def open(cls, devices: Iterable[HostDevice | str | Path] | HostDevice | str | Path) -> Self:
        """Open a new iommufd, and devices that are on a vfio driver. It takes the rights to the nodes.

        Args:
            devices: What to open: `HostDevice` objects, names or paths; or one of these.

        Raises:
            HandoverError: A process holds one of the devices; it is named.
            DeviceNotFoundError: There is no such device.
            IoctlError: A device is not on a vfio driver, or a node may not be opened.
            ValueError: No device was named.
        """
        if isinstance(devices, HostDevice | str | Path):
            devices = [devices]
        targets = list(dict.fromkeys(as_device(device) for device in devices))
        if not targets:
            raise ValueError("no device to hand over was named")
        # It could be opened once more, and the bind would then be refused, to another process and without a reason.
        if held := holders(*targets):
            raise HandoverError("in use already: " + "; ".join(map(str, held)))
        opened: list[DeviceFile] = []
        try:
            for target in targets:
                opened.append(DeviceFile(target))
            return cls(IOMMUFD(), opened)
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

        Works once: the variable `VARIABLE` is taken out of the environment, and programs that this one starts do not
        get the fds.

        Args:
            environment: In place of ``os.environ``.

        Raises:
            HandoverError: Nothing was handed to this process.
        """
        environment = os.environ if environment is None else environment
        text = environment.pop(VARIABLE, "")
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
        return cls._taken(fds)

    @classmethod
    def _taken(cls, fds: Iterable[int]) -> Self:
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
                raise HandoverError(f"what was handed over is of no use: {error}") from error
            raise
        return cls(iommufds[0], devices)

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd."""
        return self._iommufd

    @property
    def devices(self) -> tuple[DeviceFile, ...]:
        """The devices, in the order in which they were named or sent."""
        return self._devices

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(device.name for device in self._devices)
        return f"<Handover of {names}{' closed' if self._iommufd.closed else ''}>"


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
