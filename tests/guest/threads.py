"""Threads that are started and waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyiommufd import ClosedError
from tests.patience import patience, until


def run_all(works: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own; the first exception of one is this function's. None may hang."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(600))
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def ends_of_waiters(
    wait: Callable[[], object], waiting: Callable[[], object], close: Callable[[], object]
) -> list[object]:
    """What three threads get that wait for an object which is closed meanwhile.

    Args:
        wait: What each of them calls.
        waiting: Says whether all three wait.
        close: Closes the object.

    Returns:
        What each call returned, or the type of its error.
    """
    ends: list[object] = []

    def work() -> None:
        try:
            ends.append(wait())
        except ClosedError as error:
            ends.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(waiting, "all threads wait")
    close()
    for thread in threads:
        thread.join(patience())
    return ends
