"""Defers SIGINT and SIGTERM while a claim is only partly carried out."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pyiommufd.errors import ClaimError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredSignals:
    """What came while signals are deferred."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first one; None: none came."""

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Remember one; a handler as of `signal.signal`."""
        self.signal = self.signal or signal.Signals(number)

    @property
    def pending(self) -> bool:
        """Whether one has come."""
        return self.signal is not None

    def check(self) -> None:
        """Go no further once one has come.

        Raises:
            ClaimError: It has.
        """
        if self.signal is not None:
            raise ClaimError(f"interrupted by {self.signal.name}")


@contextlib.contextmanager
def deferred_signals() -> Iterator[DeferredSignals]:
    """Defer SIGINT and SIGTERM: the first that comes takes effect at the end of the block.

    In the main thread only, as Python's signals are; elsewhere this does nothing. What is ignored stays ignored.
    """
    deferred = DeferredSignals()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # None: the handler was not set by Python and could not be restored.
            if handler is not None and handler is not signal.SIG_IGN:
                before[number] = handler
                signal.signal(number, deferred.note)
    try:
        yield deferred
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if deferred.signal is not None:
            signal.raise_signal(deferred.signal)
