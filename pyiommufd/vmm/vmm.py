"""A virtual machine monitor, or any other program that drives devices, as a child process."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pyiommufd.errors import ClaimError, HandoverError
from pyiommufd.host.limits import has_capability
from pyiommufd.host.users import User, find_user
from pyiommufd.printable import printable
from pyiommufd.vmm.handover import VARIABLE, Handover
from pyiommufd.vmm.launch import launch_command
from pyiommufd.vmm.vf_token import TOKEN_VARIABLE

UNLIMITED = -1
"""No limit on locked memory."""

_MOST_MEMLOCK = 2**63 - 1  # what setrlimit(2) takes by Python's resource; the kernel's RLIM_INFINITY is beyond
_CAP_SETGID = 6
_CAP_SETUID = 7
_CAP_SYS_RESOURCE = 24
_FILES = 16  # what a run opens besides the devices, at most at a time


def with_groups(user: User | str) -> User:
    """The user, or the one of that name or number, whom a program can run as.

    Raises:
        HandoverError: There is none, or none that is on record: of a number alone no groups are known. Or this process
            may not start a program as somebody else.
    """
    try:
        user = find_user(user) if isinstance(user, str) else user
    except ClaimError as error:
        raise HandoverError(str(error)) from None
    if user.gid is None:
        raise HandoverError(f"there is no user {user.name!r} on record here, whose groups the program would have")
    if not (has_capability(_CAP_SETUID) and has_capability(_CAP_SETGID)):
        raise HandoverError(f"to run a program as {user} takes root (CAP_SETUID, CAP_SETGID)")
    return user


def check_memlock(memlock: object) -> None:
    """Refuse a limit on locked memory that a program could not be started with.

    Args:
        memlock: As for `VMM`.

    Raises:
        TypeError: It is no int.
        ValueError: It is negative and not `UNLIMITED`, or more than the kernel has a number for.
        HandoverError: It is more than this process may set.
    """
    if memlock is None:
        return
    if not isinstance(memlock, int) or isinstance(memlock, bool):
        raise TypeError(f"a limit on locked memory is an int, bytes or UNLIMITED, not {type(memlock).__name__}")
    if memlock < 0 and memlock != UNLIMITED:
        raise ValueError(f"a limit on locked memory is UNLIMITED or no less than 0 bytes, not {memlock}")
    if memlock > _MOST_MEMLOCK:
        raise ValueError(f"a limit on locked memory is at most {_MOST_MEMLOCK >> 20} MiB, or unlimited")
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if hard != resource.RLIM_INFINITY and not 0 <= memlock <= hard and not has_capability(_CAP_SYS_RESOURCE):
        wanted = "unlimited" if memlock == UNLIMITED else f"{memlock / (1 << 20):g} MiB"
        raise HandoverError(
            f"a limit on locked memory of {wanted} is more than the {hard / (1 << 20):g} MiB that this process may set "
            "(ulimit -Hl): name no more, or have that raised: by /etc/security/limits.conf, LimitMEMLOCK= of a systemd "
            "unit, or with CAP_SYS_RESOURCE"
        )


def check_start(command: Sequence[str], devices: int, *, user: User | None, memlock: int | None) -> None:
    """Refuse what could not be started, before anything is done for it; starts nothing itself.

    Args:
        command: As for `VMM`.
        devices: How many devices it is to get.
        user: As for `VMM`.
        memlock: As for `VMM`.

    Raises:
        HandoverError: There is no such program, or it may not be run; or a limit of this process is in the way.
        ValueError, TypeError: As `check_memlock`.
    """
    check_memlock(memlock)
    program = command[0]
    if shutil.which(program) is None:
        path = Path(program)
        if "/" in program and path.exists():
            raise HandoverError(f"{printable(program)} is {'a folder' if path.is_dir() else 'no executable file'}")
        raise HandoverError(f"there is no program {printable(program)}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and len(list(Path("/proc/self/fd").iterdir())) + devices + _FILES > files:
        raise HandoverError(f"{devices} devices take more than the {files} open files that are allowed: ulimit -n")
    if user is not None:
        rehearsal = launch_command(command, rehearse=True, memlock=memlock, user=_identity(user))
        done = subprocess.run(rehearsal, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise HandoverError(f"cannot start as {user}: {done.stderr.decode(errors='replace').strip()}")


def _identity(user: User) -> dict[str, object]:
    """The user, for `launch_command`."""
    return {"uid": user.uid, "gid": user.gid, "groups": user.groups}


def inherited_fds() -> tuple[int, ...]:
    """The fds that this process has been started with, but for the standard ones: all others are its own alone.

    A shell's ``3<>/dev/tap5``, for an argument such as QEMU's ``-netdev tap,fd=3``, is one.
    """
    found = []
    for fd in (int(path.name) for path in list(Path("/proc/self/fd").iterdir())):
        # The folder's own has been closed since.
        with contextlib.suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return tuple(sorted(found))


class VMM:
    """A started program that has got devices. A context manager that ends it.

    It has the fds of the handover, which are closed here as soon as it has them, and finds their numbers in the
    environment variable ``PYIOMMUFD_FDS``, and the VF token, where the handover has one, in ``PYIOMMUFD_VF_TOKEN``. It
    shares this process' terminal and process group. It is killed when the *thread* that started it ends, even with
    SIGKILL: the one that starts it has to outlive it. The program must not daemonize, as with QEMU's
    ``-daemonize``.

    Args:
        command: The program and its arguments; it is looked up on the PATH.
        handover: What it gets.
        user: Whom it runs as, without any privilege or that one's name; None: as this process does.
        memlock: Bytes of memory that it may lock, and so map for DMA, or `UNLIMITED`; None: as this process. Only
            those without CAP_IPC_LOCK are held to it, and all processes of a user together.
        environment: Added to this process' environment.
        mask: The signals that it starts with blocked.
        keep_fds: More fds of this process that it is to have, under the same numbers; see `inherited_fds`.

    Attributes:
        command: The program and its arguments.

    Raises:
        HandoverError: It could not be started, there is no such user, or this process may not set that limit.
        ClosedError: The handover is closed, or a device has been bound.
        ValueError, TypeError: No program was named, or ``memlock`` is no such limit; nothing is started.
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
        keep_fds: Collection[int] = (),
    ) -> None:
        if not command:
            raise ValueError("no program to start was named")
        check_memlock(memlock)
        user = None if user is None else with_groups(user)
        self.command = tuple(command)
        fds = handover.fds
        variables = {**os.environ, **(environment or {}), VARIABLE: " ".join(map(str, fds))}
        variables.pop(TOKEN_VARIABLE, None)  # another one's
        if handover.vf_token is not None:
            variables[TOKEN_VARIABLE] = str(handover.vf_token)
        identity = None
        if user is not None:
            variables |= {"HOME": user.home or "/", "USER": user.name, "LOGNAME": user.name}
            identity = _identity(user)
        reader, writer = os.pipe()
        try:
            started = launch_command(self.command, report=writer, mask=sorted(mask), memlock=memlock, user=identity)
            try:
                self._process = subprocess.Popen(started, pass_fds=(*fds, writer, *keep_fds), env=variables)
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
            Its exit status; -N where signal N has ended it.

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
