"""What all tests share."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest

from pyiommufd.host.persistent import environment


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "boots: starts a QEMU guest, so it runs on the host and takes seconds")
    config.addinivalue_line("markers", "long: takes more than a few seconds in an emulated guest; not in `tests/run`")
    # Tests and the programs that they start are sent signals, and a background job of a shell, or what nohup runs,
    # has been started with these ignored.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_finish() -> None:
    # Nearly every test in a guest ends with a collection, for the leaks: what pytest, its plugins and the modules are
    # made of need not be in it, which takes an emulated machine a fifth of a second.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def trusted_environment() -> Iterator[None]:
    """A claim --persist wants a Python environment that only root can write, which a developer's checkout need not be.

    For what the test itself does; `tests.trusted` is for the programs that it starts.
    """
    with pytest.MonkeyPatch.context() as patch:  # not the fixture: tests' own ones are to undo what they do first
        patch.setattr(environment, "places", lambda: iter(()))
        yield
