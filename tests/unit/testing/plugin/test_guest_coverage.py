"""What a guest has covered, on its way to the host."""

from __future__ import annotations

import base64
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import coverage
import pytest
from coverage import CoverageData

from pyiommufd.testing.inside import wire
from pyiommufd.testing.inside.in_guest import measured
from pyiommufd.testing.plugin.guest_coverage import GuestCoverage, fill

LINES = {"tracers": {"/x.py": ""}, "contexts": {"": {"/x.py": [1, 2]}}}
ARCS = {"tracers": {"/x.py": ""}, "contexts": {"": {"/x.py": [[-1, 1], [1, -1]]}}}


@pytest.fixture
def data() -> Iterator[CoverageData]:
    made = CoverageData(no_disk=True)
    yield made
    made.close()


class Plugins:
    """The part of pytest that `GuestCoverage` finds pytest-cov in."""

    def __init__(self, folder: Path, *, branch: bool) -> None:
        self.pluginmanager = self.cov_controller = self
        self.topdir = str(folder)
        self.cov = coverage.Coverage(data_file=str(folder / "here"), branch=branch, config_file=False)

    def getplugin(self, name: str) -> Plugins | None:
        return self if name == "_cov" else None


def sent(message: dict[str, Any]) -> dict[str, Any]:
    decoded = wire.decode(bytearray(wire.encode({"op": "coverage", **message})))
    assert decoded is not None
    return decoded


@pytest.mark.parametrize("branches", [False, True])
def test_everything_arrives(data: CoverageData, branches: bool) -> None:
    with closing(CoverageData(no_disk=True)) as here:
        for context, numbers in (("", [1, 2]), ("test_a|run", [2, 3]), ("test_b|run", [])):
            here.set_context(context)
            if branches:
                here.add_arcs({"/x.py": [(-1, number) for number in numbers]})
            else:
                here.add_lines({"/x.py": numbers})
        here.touch_file("/never.py")
        here.touch_file("/page.html", "a.plugin")
        fill(data, sent(measured(here)), branches=branches)
        assert data.measured_files() == here.measured_files() == {"/x.py", "/never.py", "/page.html"}
        assert data.has_arcs() == branches
        assert data.contexts_by_lineno("/x.py").keys() == {1, 2, 3}
        for name in here.measured_files():
            assert sorted(data.arcs(name) or data.lines(name) or []) == sorted(
                here.arcs(name) or here.lines(name) or []
            )
            assert data.file_tracer(name) == here.file_tracer(name)
            assert {line: set(contexts) for line, contexts in data.contexts_by_lineno(name).items()} == {
                line: set(contexts) for line, contexts in here.contexts_by_lineno(name).items()
            }


def test_nothing_was_measured(data: CoverageData) -> None:
    with closing(CoverageData(no_disk=True)) as here:
        fill(data, sent(measured(here)), branches=True)
    assert data.measured_files() == set()


def test_message_is_kept_beside_what_was_measured_here(tmp_path: Path) -> None:
    plugins: Any = Plugins(tmp_path, branch=True)
    GuestCoverage(plugins).add(sent(ARCS))
    (path,) = tmp_path.glob("here.guest.*")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT path FROM file").fetchall() == [("/x.py",)]


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        (False, {}),
        (False, {"tracers": [], "contexts": {}}),
        (False, {"tracers": {"/x.py": None}, "contexts": {}}),
        (False, {"tracers": {"/\udc80": ""}, "contexts": {}}),
        (False, {"tracers": {}, "contexts": {"\udc80": {}}}),
        (False, {"tracers": {}, "contexts": {"": []}}),
        (False, LINES | {"tracers": {}}),
        (False, LINES | {"contexts": {"": {"/x.py": 1}}}),
        (False, LINES | {"contexts": {"": {"/x.py": [-1]}}}),
        (False, LINES | {"contexts": {"": {"/x.py": [1 << 40]}}}),
        (False, LINES | {"contexts": {"": {"/x.py": [True]}}}),
        (False, ARCS),
        (True, LINES),
        (True, ARCS | {"contexts": {"": {"/x.py": [[1, 2, 3]]}}}),
        (True, ARCS | {"contexts": {"": {"/x.py": [[1, 1 << 80]]}}}),
    ],
)
def test_malformed_message_adds_nothing(tmp_path: Path, branches: bool, message: dict[str, Any]) -> None:
    plugins: Any = Plugins(tmp_path, branch=branches)
    with pytest.raises(ValueError, match="in a form that is not known"):
        GuestCoverage(plugins).add(sent(message))
    assert list(tmp_path.iterdir()) == []


def test_database_of_a_guest_is_not_run_as_a_script(tmp_path: Path) -> None:
    """`CoverageData.loads` would: it takes SQL."""
    script = f"ATTACH DATABASE '{tmp_path}/elsewhere' AS other; CREATE TABLE other.x (y);"
    plugins: Any = Plugins(tmp_path, branch=False)
    with pytest.raises(ValueError, match="in a form that is not known"):
        GuestCoverage(plugins).add({"data": base64.b64encode(b"z" + zlib.compress(script.encode())).decode()})
    assert list(tmp_path.iterdir()) == []
