"""Imports of the package run down and in no circle, and the check of that finds those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runner import layers


def test_imports_run_down_and_in_no_circle() -> None:
    found = layers.modules()
    graph = layers.imports(found)
    rooms = layers.between_rooms(graph, found)
    assert {"kernel.iommufd", "host.sysfs", "cli.list", "pyiommufd"} <= set(found)
    assert "kernel.memory" in rooms["kernel.pagetables"]
    assert layers.upward(rooms) == []
    assert layers.circles(rooms) == []
    assert layers.circles(graph) == []


def package(root: Path, files: dict[str, str]) -> dict[str, Path]:
    """A package of these files, each with its text."""
    for name, text in files.items():
        path = root / layers.PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return layers.modules(root)


@pytest.mark.parametrize(
    "text",
    [
        "from pyiommufd.cli import list",
        "from pyiommufd.cli.list import main",
        "import pyiommufd.cli.list",
        "import os, pyiommufd.cli.list as listing",
        "def late():\n    from pyiommufd.cli import list",
        "try:\n    from pyiommufd.cli import list\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_upward_is_found(tmp_path: Path, text: str) -> None:
    found = package(tmp_path, {"host/sysfs.py": text, "cli/list.py": "def main(): pass"})
    graph = layers.imports(found)
    assert graph == {"host.sysfs": {"cli.list"}, "cli.list": set()}
    assert "host.sysfs imports cli, which is not below it" in layers.upward(layers.between_rooms(graph, found))


@pytest.mark.parametrize("condition", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_types_is_none(tmp_path: Path, condition: str) -> None:
    text = f"if {condition}:\n    from pyiommufd.cli import list\nelse:\n    import pyiommufd.errors"
    found = package(tmp_path, {"host/sysfs.py": text, "cli/list.py": "", "errors.py": ""})
    assert layers.imports(found)["host.sysfs"] == {"errors"}


def test_circles_of_modules_and_of_rooms(tmp_path: Path) -> None:
    files = {
        "kernel/memory/a.py": "from pyiommufd.kernel.memory import b",
        "kernel/memory/b.py": "from pyiommufd.kernel.memory.c import C",
        "kernel/memory/c.py": "from pyiommufd.kernel.memory.a import A",
        "kernel/device/d.py": "from pyiommufd.kernel.memory import a",
        "host/uses/e.py": "from pyiommufd.host.checks.f import F",
        "host/checks/f.py": "",
        "host/checks/g.py": "from pyiommufd.host.uses import h",
        "host/uses/h.py": "",
    }
    found = package(tmp_path, files)
    graph = layers.imports(found)
    assert layers.circles(graph) == [["kernel.memory.a", "kernel.memory.b", "kernel.memory.c"]]
    assert layers.circles(layers.between_rooms(graph, found)) == [["host.checks", "host.uses"]]


def test_a_room_that_no_floor_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(tmp_path, {"attic/box.py": "import pyiommufd.errors", "errors.py": ""})
    assert layers.main(tmp_path) == 1
    printed = capsys.readouterr().out
    assert "attic: on no floor" in printed
    assert "kernel.memory: on a floor, but not in the package" in printed
