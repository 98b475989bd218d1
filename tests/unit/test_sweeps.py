"""What a run takes of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweeps import LOG, SAMPLE, amount, read, sample, seed

POINTS = [f"point {number}" for number in range(40)]


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The log of a run that takes all."""
    monkeypatch.delenv(SAMPLE, raising=False)
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    return tmp_path / "log"


def test_all_is_taken_without_a_seed() -> None:
    assert sample("kill", iter(POINTS), 5) == POINTS
    assert amount("arguments", 10_000, 60) == 10_000


def test_sample_is_in_order_and_none_is_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SAMPLE, "1")
    taken = sample("kill", iter(POINTS), 5)
    assert len(set(taken)) == 5
    assert [point for point in POINTS if point in taken] == taken
    assert amount("arguments", 10_000, 60) == 60


def test_all_of_few_points_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SAMPLE, "1")
    assert sample("kill", POINTS[:4], 5) == POINTS[:4]
    assert sample("kill", [], 5) == []


def test_seed_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(number: str, name: str = "kill") -> tuple[list[str], int]:
        monkeypatch.setenv(SAMPLE, number)
        return sample(name, POINTS, 5), seed(name)

    one, two, other = taken("1"), taken("2"), taken("1", "release")
    assert taken("1") == one
    assert one[0] != two[0] != other[0] != one[0]
    assert one[1] != two[1] != other[1] != one[1]


def test_all_points_come_in_the_run_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for number in range(200):
        monkeypatch.setenv(SAMPLE, f"commit {number}")
        seen |= set(sample("kill", POINTS, 5))
    assert seen == set(POINTS)


def test_log_says_what_was_taken(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    assert list(read(log)) == []
    sample("kill", POINTS, 5)
    monkeypatch.setenv(SAMPLE, "1")
    sample("kill", POINTS, 5)
    amount("arguments", 10_000, 60)
    assert list(read(log)) == [("kill", 40, 40), ("kill", 40, 5), ("arguments", 10_000, 60)]
    monkeypatch.delenv(LOG)
    sample("kill", POINTS, 5)
    with log.open("a") as file:
        file.write('{"name": "ki')  # of a guest that died there
    assert len(list(read(log))) == 3
