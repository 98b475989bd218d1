"""Ends processes that a program has left behind and that still hold a device."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.holders import Holder, holders

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


def end_stragglers(devices: Iterable[HostDevice], tell: Callable[[str], object], seconds: float = 10.0) -> None:
    """End those descendants of this process that hold a device, by SIGTERM, then by SIGKILL, and wait until they have.

    To be called after `adopt_orphans`, once the program that was given the devices has ended: it may have been a shell
    that leaves other processes running.

    Args:
        devices: The devices.
        tell: Called with a sentence for each signal that is sent.
        seconds: How long each of the two signals may take.
    """
    devices = tuple(devices)
    ending: dict[int, Holder] = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ending |= {holder.pid: holder for holder in holders(*devices) if _is_ours(holder.pid)}
            # A process closes its files before it is gone: who has let a device go may still be on the way out.
            ending = {pid: holder for pid, holder in ending.items() if _is_running(pid)}
            if not ending:
                return
            for pid in ending.keys() - told:
                told.add(pid)
                tell(f"{ending[pid]}, left behind: {number.name}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(_LOOK_EVERY)


def _is_running(pid: int) -> bool:
    """Whether a descendant has not ended; one that has is taken off the kernel's list where that is for its parent."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    # Another process's child, which may not have waited for it yet.
    return _is_ours(pid) and _stat(pid)[0] not in "ZX"


def _is_ours(pid: int) -> bool:
    while pid > 1:
        pid = int(_stat(pid)[1])
        if pid == os.getpid():
            return True
    return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; state X and parent 0 for a process that is gone."""
    text = sysfs.read(Path("/proc") / str(pid) / "stat")
    # proc_pid_stat(5): the command may hold blanks and brackets, and ends at the last bracket.
    return text.rpartition(")")[2].split() if text else ["X", "0"]
