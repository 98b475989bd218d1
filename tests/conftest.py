"""What all tests share."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "boots: starts a QEMU guest, so it runs on the host and takes seconds")
    config.addinivalue_line("markers", "long: takes more than a few seconds in an emulated guest; not in `tests/run`")
    # Tests and the programs that they start are sent signals, and a background job of a shell, or what nohup runs,
    # has been started with these ignored.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
