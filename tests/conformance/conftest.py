"""What the twins share: their cases' names go into the report, and everything is given back."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

_HUGE_PAGES = 64
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "twin(case, route): the twin of a case of one of the kernel's own C programs")
    if not Path("/dev/iommu").exists() and not config.getoption("collectonly"):
        pytest.exit("the twins are for a guest: tests/run --conformance", 3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: dict[str, pytest.Item] = {}
    for item in items:
        marker = item.get_closest_marker("twin")
        if marker is None:
            raise pytest.UsageError(f"{item.nodeid} is the twin of no case")
        fixture, _, case = marker.kwargs["case"].partition(".")
        variant = getattr(getattr(item, "callspec", None), "id", None)
        name = f"{fixture}.{variant}.{case}" if variant else f"{fixture}.{case}"
        if name in seen:
            raise pytest.UsageError(f"{name} has two twins: {seen[name].nodeid} and {item.nodeid}")
        seen[name] = item
        item.user_properties += [("case", name), ("route", str(marker.kwargs["route"]))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Let go of what a failing test holds, as soon as it has been described.

    Left to the garbage collector, a memoryview whose memory an ioctl's argument shares crashes CPython up to 3.11.7
    and 3.12.1 (gh-77894), and huge pages stay taken.
    """
    report = yield
    error = call.excinfo.value if call.excinfo else None
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            # Up to 3.12 a dictionary, which keeps what it was asked for; later a view of the frame.
            kept: Any = frame.f_locals
            if isinstance(kept, dict) and kept is not frame.f_globals:
                kept.clear()
        error = error.__cause__ or error.__context__
    return report


@pytest.fixture(autouse=True)
def gives_back(no_leaks: object) -> None:
    """Every twin closes what it has opened."""


@pytest.fixture(scope="session")
def huge_pages() -> Iterator[None]:
    """The huge pages that the C programs want, too."""
    before = int(_POOL.read_text())
    _POOL.write_text(str(max(before, _HUGE_PAGES)))
    assert int(_POOL.read_text()) >= _HUGE_PAGES, "the guest has too little memory for huge pages"
    yield
    _POOL.write_text(str(before))
