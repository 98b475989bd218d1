"""Signals that are deferred while a claim is only partly carried out."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pyiommufd import ClaimError
from pyiommufd.host.claims.signals import deferred_signals


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    # By the time that this process runs again it has come; Python's handler runs before the next line.


def test_interrupt_waits_for_the_end() -> None:
    handler = signal.getsignal(signal.SIGINT)
    done = []

    def work() -> None:
        with deferred_signals() as held:
            held.check()
            send(signal.SIGINT)
            assert held.pending
            with pytest.raises(ClaimError, match="interrupted by SIGINT"):
                held.check()
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is handler


def test_first_of_several_takes_effect_by_the_handler_of_before() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with deferred_signals() as held:
            send(signal.SIGTERM)
            send(signal.SIGINT)
            assert seen == []
        assert held.signal is signal.SIGTERM
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_takes_effect_beside_an_error() -> None:
    def work() -> None:
        with deferred_signals():
            send(signal.SIGINT)
            raise ClaimError("failed")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ClaimError)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals() as held:
            send(signal.SIGINT)
            assert not held.pending
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hold_nothing_back() -> None:
    seen = []

    def work() -> None:
        with deferred_signals() as held:
            seen.append((signal.getsignal(signal.SIGINT), held.pending))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGINT), False)]
