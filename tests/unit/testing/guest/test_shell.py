"""A shell in a guest that ends with its terminal, or with the guest."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.guest import Guest
from pyiommufd.testing.guest.shell import run_shell


@pytest.fixture
def terminal() -> Iterator[int]:
    """The other end of a terminal that file descriptors 0 and 1 are."""
    other_end, ours = os.openpty()
    before = [os.dup(fd) for fd in (0, 1)]
    for fd in (0, 1):
        os.dup2(ours, fd)
    yield other_end
    for fd, old in enumerate(before):
        os.dup2(old, fd)
        os.close(old)
    os.close(ours)


@pytest.mark.parametrize("error", [GuestError("the guest is gone"), SystemExit(129)])
def test_what_ended_the_shell_is_raised_on_a_terminal_that_hung_up(terminal: int, error: BaseException) -> None:
    class Lost(Guest):
        def run(self, *arguments: Any, **options: Any) -> NoReturn:
            os.close(terminal)
            raise error

    with pytest.raises(type(error)) as caught:
        run_shell(Lost())
    assert caught.value is error


def test_only_the_main_thread_can_follow_a_terminal() -> None:
    caught: list[ValueError] = []

    def run() -> None:
        try:
            Guest().run(["sh"], stdin=0, terminal=True)
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "only the main thread" in str(caught[0])
