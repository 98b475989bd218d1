"""The architecture page names every room, and no file or folder that is not there."""

from __future__ import annotations

import re

from tests.runner import layers
from tests.runner.runs import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
NAMES = set(re.findall(r"`([^`\s]+)`", PAGE))


def test_every_file_and_folder_is_there() -> None:
    files = {name for name in NAMES if re.search(r"\.(py|c|h|txt)$", name) and "*" not in name}
    folders = {name for name in NAMES if name.endswith("/") or name.startswith("tests/")} - files
    assert len(files) > 15
    assert len(folders) > 20
    known = [ROOT, *(path for path in (ROOT / "pyiommufd").rglob("*") if path.is_dir()), ROOT / "pyiommufd"]
    assert [name for name in files if not any((folder / name).is_file() for folder in known)] == []
    assert [name for name in folders if "<" not in name and not any((path / name).is_dir() for path in known)] == []


def test_every_room_is_named() -> None:
    found = layers.modules()
    rooms = layers.between_rooms(layers.imports(found), found)
    folders = {room.rpartition(".")[2] for room in rooms if room in found and found[room].name == "__init__.py"}
    assert sorted(folder for folder in folders - {layers.PACKAGE} if f"{folder}/" not in NAMES) == []
