"""What tests/benchmark prints and writes; what it measures is not asserted anywhere."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks.figure import Figure

FIGURES = [
    Figure("a map", 2.5, 3.0, "x C"),
    Figure("a map by fcntl", 3.9, None, "x C"),
    Figure("a plan", 1.25, 1.0, "s"),
]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tests.benchmarks.made_up")
    module.figures = lambda: iter(FIGURES)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "PARTS", ("made_up",))
    return


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["tests/benchmark", *map(str, arguments)])
    return command.main()


@pytest.mark.usefixtures("parts")
def test_a_missed_goal_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 1
    first, second, third = capsys.readouterr().out.splitlines()[1:]
    assert first.split() == ["a", "map", "2.50", "x", "C", "<=", "3", "yes"]
    assert second.split() == ["a", "map", "by", "fcntl", "3.90", "x", "C"]
    assert third.split() == ["a", "plan", "1.25", "s", "<=", "1", "no"]


@pytest.mark.usefixtures("parts")
def test_figures_are_written_and_shown_beside_later_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    run(monkeypatch, "made_up", "--json", file)
    written = json.loads(file.read_text())
    assert written[0] == {"name": "a map", "ratio": 2.5, "goal": 3.0, "unit": "x C"}
    assert [one["name"] for one in written] == [one.name for one in FIGURES]
    file.write_text(json.dumps([written[0] | {"ratio": 4.64}, written[0] | {"ratio": 7.0, "unit": "ms"}]))
    capsys.readouterr()
    run(monkeypatch, "--against", file)
    head, first, second, _ = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "before"
    assert first.split()[-1] == "4.64"
    assert second.split()[-1] == "C"


@pytest.mark.usefixtures("parts")
def test_the_page_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(command.PAGE.read_text())
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(command, "setting", lambda: "Measured today.")
    for _ in range(2):  # the second one in place of the first
        run(monkeypatch, "--docs")
    before, _, after = command.PAGE.read_text().partition("Measured today.\n")
    assert "| a plan | 1.25 | s | ≤ 1: **missed** |" in after
    assert after.count("| a map | 2.50 | x C | ≤ 3 |") == 1
    assert "Measured" not in before + after
    assert "## How it is done" in after


@pytest.mark.usefixtures("parts")
def test_the_page_takes_all_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "PAGE", tmp_path / "performance.md")
    with pytest.raises(SystemExit):
        run(monkeypatch, "made_up", "--docs")
    assert "leave PART out" in capsys.readouterr().err
    assert not command.PAGE.exists()


def test_an_unknown_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "wall-clock")
    assert "wall-clock" in capsys.readouterr().err


@pytest.mark.parametrize("part", command.PARTS)
def test_each_part_has_figures(part: str) -> None:
    assert callable(importlib.import_module(f"tests.benchmarks.{part}").figures)
