"""What a program has started and left behind, with a device still in its hands."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..host import sysfs
from ..host.devices import HostDevice
from ..host.holders import Holder, holders

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY = 0.1  # seconds


def adopt_orphans() -> None:
    """Become the parent of what children of this process leave behind (PR_SET_CHILD_SUBREAPER).

    Raises:
        OSError: The kernel cannot.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def end_stragglers(
    devices: Iterable[HostDevice], tell: Callable[[str], object], seconds: float = 10.0
) -> tuple[Holder, ...]:
    """End those descendants of this process that hold a device, by SIGTERM, then by SIGKILL.

    For after `adopt_orphans`, and the end of the program that was given the devices: that one shell's last command may
    have been another's first.

    Args:
        devices: The devices.
        tell: Called with a sentence for each that is ended.
        seconds: How long each of the two signals may take.

    Returns:
        Those that hold a device still.
    """
    devices = tuple(devices)
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        end = time.monotonic() + seconds
        while held := [holder for holder in holders(*devices) if _is_ours(holder.pid)]:
            for holder in held:
                if holder.pid not in told:
                    told.add(holder.pid)
                    tell(f"{holder}, left behind: {number.name}")
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(holder.pid, number)
            if time.monotonic() > end:
                break
            time.sleep(_LOOK_EVERY)
            _reap(told)
        else:
            return ()
    return tuple(held)


def _is_ours(pid: int) -> bool:
    while pid > 1:
        pid = _parent(pid)
        if pid == os.getpid():
            return True
    return False


def _parent(pid: int) -> int:
    text = sysfs.read(Path("/proc") / str(pid) / "stat")
    # proc_pid_stat(5): the command may hold blanks and brackets, and ends at the last bracket; then state and parent.
    return int(text.rpartition(")")[2].split()[1]) if text else 0


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
