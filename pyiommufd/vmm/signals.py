"""Signals to this process that are its child's business."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from pyiommufd.vmm.vmm import VMM

_MONITORS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})
"""What a monitor is to decide upon."""

_KEYS = frozenset({signal.SIGINT, signal.SIGQUIT})
"""What the terminal sends to its whole foreground process group. A hangup it tells the leader of the session alone."""


def forwarded() -> frozenset[signal.Signals]:
    """The signals that are passed on: what this process has been started to ignore, as by nohup, is for nobody."""
    return frozenset(number for number in _MONITORS if signal.getsignal(number) is not signal.SIG_IGN)


@contextlib.contextmanager
def held_back() -> Iterator[set[signal.Signals | int]]:
    """Have these signals wait: for `wait_forwarding`, or for the end of the block, where they are dropped.

    What comes while devices are given back does not interrupt that. For the main thread, before other threads are
    started: those have them wait as well.

    Yields:
        The signals that were blocked before, for `VMM`.
    """
    # Where whoever started this process had it ignore its children, their ends would not be told.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mine = forwarded()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mine | {signal.SIGCHLD})
    try:
        yield before
    finally:
        while signal.sigtimedwait(mine, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def waiting() -> signal.Signals | None:
    """One of the signals that wait: inside of `held_back` before there is a monitor, a reason not to start any."""
    return min(signal.sigpending() & forwarded(), default=None)


def wait_forwarding(vmm: VMM) -> int:
    """Wait until a monitor ends, and pass on to it what signals come; inside of `held_back`.

    Returns:
        Its exit status: -N where signal N has ended it.
    """
    mine = forwarded()
    while (status := vmm.poll()) is None:
        info = signal.sigwaitinfo(mine | {signal.SIGCHLD})
        if info.si_signo in mine and not _has_it_already(vmm, info):
            vmm.send_signal(info.si_signo)
    return status


def _has_it_already(vmm: VMM, info: signal.struct_siginfo) -> bool:
    """Whether the terminal has sent this to the monitor as well: once is enough. A code above 0 is the kernel's."""
    if info.si_code <= 0 or info.si_signo not in _KEYS:
        return False
    try:
        return os.getpgid(vmm.pid) == os.getpgrp()
    except ProcessLookupError:
        return True
