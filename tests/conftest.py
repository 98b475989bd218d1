"""What all tests share."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "boots: starts a QEMU guest, so it runs on the host and takes seconds")
