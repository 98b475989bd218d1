"""Forwarding of signals from this process to the monitor that it started."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from pyiommufd.vmm.vmm import VMM

_MONITORS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})
"""The signals that are left to the monitor."""

_KEYS = frozenset({signal.SIGINT, signal.SIGQUIT})
"""What the terminal sends to its whole foreground process group. A hangup it tells the leader of the session alone."""


def forwarded() -> frozenset[signal.Signals]:
    """The signals that are forwarded; those that this process was started to ignore, as by nohup, are not."""
    return frozenset(number for number in _MONITORS if signal.getsignal(number) is not signal.SIG_IGN)


@contextlib.contextmanager
def blocked_signals() -> Iterator[set[signal.Signals | int]]:
    """Block these signals: for `wait_forwarding`, or until the end of the block, where pending ones are dropped.

    What comes while devices are given back does not interrupt that. For the main thread, before other threads are
    started, which inherit the blocked signals.

    Yields:
        The signals that were blocked before, for `VMM`.
    """
    # If this process was started with SIGCHLD ignored, the end of a child would not be reported.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mine = forwarded()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mine | {signal.SIGCHLD})
    try:
        yield before
    finally:
        while signal.sigtimedwait(mine, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pending_signal() -> signal.Signals | None:
    """A pending signal, or None; inside `blocked_signals`, before the monitor is started: a reason not to start it."""
    return min(signal.sigpending() & forwarded(), default=None)


def wait_forwarding(vmm: VMM) -> int:
    """Wait until a monitor ends, and pass on to it what signals come; inside of `blocked_signals`.

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
    """Whether the terminal has sent the signal to the monitor as well. si_code > 0: sent by the kernel."""
    if info.si_code <= 0 or info.si_signo not in _KEYS:
        return False
    try:
        return os.getpgid(vmm.pid) == os.getpgrp()
    except ProcessLookupError:
        return True
