"""Signals to this process that are its child's business."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from .vmm import VMM

FORWARDED = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})
"""What a monitor is to decide upon."""


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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    try:
        yield before
    finally:
        while signal.sigtimedwait(FORWARDED, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def waiting() -> signal.Signals | None:
    """One of the signals that wait: inside of `held_back` before there is a monitor, a reason not to start any."""
    return min(signal.sigpending() & FORWARDED, default=None)


def wait_forwarding(vmm: VMM) -> int:
    """Wait until a monitor ends, and pass on to it what signals come; inside of `held_back`.

    Returns:
        Its exit status: -N where signal N has ended it.
    """
    while (status := vmm.poll()) is None:
        info = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
        # What the terminal sends (a code of the kernel's, above 0) has gone to the monitor as well, as it is in the
        # same process group: once is enough.
        if info.si_signo in FORWARDED and info.si_code <= 0:
            vmm.send_signal(info.si_signo)
    return status
