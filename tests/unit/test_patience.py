"""Limits that grow with the machine's slowness, and waiting by them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests import patience as module
from tests.patience import patience, until


@pytest.fixture(autouse=True)
def measured_anew() -> Iterator[None]:
    """What is measured here is forgotten, and what was before."""
    module._slowness.cache_clear()
    yield
    module._slowness.cache_clear()


@pytest.mark.parametrize(
    ("work", "load", "limit"), [(0.5, 0.0, 10), (3.0, 0.0, 30), (0.5, 4.0, 40), (3.0, 2.0, 30), (0.0, 0.0, 10)]
)
def test_limit_grows_and_never_shrinks(monkeypatch: pytest.MonkeyPatch, work: float, load: float, limit: float) -> None:
    """By the work or by the load for each processor, whichever says more."""
    monkeypatch.setattr(module, "_work", lambda: work * module._REFERENCE)
    monkeypatch.setattr("os.getloadavg", lambda: (load * 2, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert patience(10) == pytest.approx(limit)


def test_work_is_measured_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 109.0, 110.0])
    works = iter([0.1, 0.2])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(module, "_work", lambda: module._REFERENCE * next(works) * 1e6)
    assert [patience(1) for _ in range(4)] == pytest.approx([1e5, 1e5, 1e5, 2e5])


def test_this_machine() -> None:
    assert module._work() > 0
    assert patience(7) >= 7


def test_until_returns_what_it_waited_for() -> None:
    answers = iter([None, "", "it"])
    assert until(lambda: next(answers), pause=0) == "it"


def test_until_says_what_did_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once more at least when the limit is over, and the limit is the grown one."""
    monkeypatch.setattr(module, "_slowness", lambda period: 5.0)
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"not so within 1\.0 s: the end"):
        until(lambda: False, "the end", 0.2, pause=0.001)
    assert time.monotonic() - start > 1.0
    lines = itertools.count(7)
    with pytest.raises(AssertionError, match="line 7"):
        until(lambda: None, lambda: f"line {next(lines)}", 0)
