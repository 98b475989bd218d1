"""A virtual machine monitor, or any program that drives devices, as a process of ours."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..errors import HandoverError
from .handover import VARIABLE, Handover
from .launch import launch_command

UNLIMITED = -1
"""No limit on locked memory."""


@dataclass(frozen=True, slots=True)
class User:
    """Whom a program runs as.

    Attributes:
        name: The name.
        uid: The user's number.
        gid: Its group's.
        groups: All its groups.
        home: Its folder.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @classmethod
    def find(cls, name: str) -> Self:
        """The user of that name or number, with the groups that this machine knows it to be in.

        Raises:
            HandoverError: There is none.
        """
        try:
            entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        except (KeyError, OverflowError):
            raise HandoverError(f"this machine knows no user {name}") from None
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups), entry.pw_dir)


class VMM:
    """A started program that has got devices. A context manager that ends it.

    It has the fds of the handover, which are closed here as soon as it has them, and finds their numbers in the
    environment variable ``PYIOMMUFD_FDS``. It shares this process' terminal and process group. It is killed when the
    *thread* that started it ends, even with SIGKILL: the one that starts it has to outlive it. So it may not leave
    for a process of its own, as by QEMU's ``-daemonize``.

    Args:
        command: The program and its arguments; it is looked up on the PATH.
        handover: What it gets.
        user: Whom it runs as, without any privilege (`User.find` of a name); None: as this process does.
        memlock: Bytes of memory that it may lock, and so map for DMA, or `UNLIMITED`; None: as this process. Only
            those without CAP_IPC_LOCK are held to it, and all processes of a user together.
        environment: Added to this process' environment.
        mask: The signals that it starts with blocked.

    Raises:
        HandoverError: It could not be started, or there is no such user.
        ClosedError: The handover is closed, or a device has been bound.
    """

    def __init__(
        self,
        command: Sequence[str],
        handover: Handover,
        *,
        user: User | str | None = None,
        memlock: int | None = None,
        environment: Mapping[str, str] | None = None,
        mask: Collection[int] = (),
    ) -> None:
        if isinstance(user, str):
            user = User.find(user)
        if not command:
            raise ValueError("no program to start was named")
        self.command = tuple(command)
        fds = handover.fds
        variables = {**os.environ, **(environment or {}), VARIABLE: " ".join(map(str, fds))}
        identity = None
        if user is not None:
            variables |= {"HOME": user.home, "USER": user.name, "LOGNAME": user.name}
            identity = {"uid": user.uid, "gid": user.gid, "groups": user.groups}
        reader, writer = os.pipe()
        try:
            started = launch_command(self.command, report=writer, mask=sorted(mask), memlock=memlock, user=identity)
            try:
                self._process = subprocess.Popen(started, pass_fds=(*fds, writer), env=variables)
            except OSError as error:
                raise HandoverError(f"cannot start {self.command[0]}: {error}") from error
            finally:
                os.close(writer)
            try:
                # At once: the device stays bound as long as anybody has a copy.
                handover.close()
                # Until it has become the program, which closes the pipe, or has said why not.
                said = b""
                while piece := os.read(reader, 4096):
                    said += piece
                if said:
                    raise HandoverError(f"cannot start {said.decode(errors='replace')}")
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise
        finally:
            os.close(reader)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status where it has ended, else None: -N where signal N has ended it."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Returns:
            Its exit status: -N where signal N has ended it.

        Raises:
            TimeoutError: It has not ended in time.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.command[0]} (pid {self.pid}) has not ended within {timeout:g} s") from None

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing where it has ended."""
        self._process.send_signal(number)

    def end(self, seconds: float = 10.0) -> int:
        """End it: by SIGTERM, and by SIGKILL where that does not do in time.

        Returns:
            Its exit status, as `wait`.
        """
        self.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            return self.wait(seconds)
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def __repr__(self) -> str:
        status = self.poll()
        return f"<VMM {self.command[0]} {f'pid {self.pid}' if status is None else f'ended with {status}'}>"
