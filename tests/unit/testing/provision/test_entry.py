"""What is in the cache whole, and what becomes of the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture
from pyiommufd.testing.provision.entry import Entry, entry_name, named_for


def make(folder: Path, content: str = "content") -> Path:
    facts: dict[str, Any] = {"what": folder.name}
    with Entry.made(folder, facts) as work:
        (work / "below").mkdir()
        (work / "below/file").write_text(content)
        (work / "link").symlink_to("below/file")
        facts["found"] = 7
    entry = Entry.load(folder)
    assert entry == Entry(folder, facts)
    assert (entry.manifest["what"], entry.manifest["found"]) == (folder.name, 7)
    return folder


DAMAGES: dict[str, Callable[[Path], object]] = {
    "content": lambda folder: (folder / "below/file").write_text("kontent"),
    "a file more": lambda folder: (folder / "below/more").touch(),
    "a file less": lambda folder: (folder / "below/file").unlink(),
    "a name": lambda folder: (folder / "below/file").rename(folder / "below/other"),
    "a link": lambda folder: (folder / "below/file").replace(folder / "link"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1, '),
    "another format": lambda folder: (folder / "manifest.json").write_text('{"format": 0}'),
    "no object": lambda folder: (folder / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_is_not_there_until_it_is_made_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = make(tmp_path / "x-1")
    damage(folder)
    assert Entry.load(folder) is None
    assert list(Entry.newest(tmp_path, X86_64)) == []
    make(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["x-1"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = make(tmp_path / "x-1", "good")
    with pytest.raises(ZeroDivisionError), Entry.made(folder, {}) as work:
        (work / "file").write_text(str(1 / 0))
    assert (folder / "below/file").read_text() == "good"
    assert Entry.load(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["x-1"]


def test_what_a_killed_process_left_is_not_in_it(tmp_path: Path) -> None:
    left = tmp_path / ".x-1.unpacking/half"
    left.mkdir(parents=True)
    assert list(Entry.newest(tmp_path, X86_64)) == []
    assert not (make(tmp_path / "x-1") / "half").exists()


@pytest.mark.parametrize(("architecture", "middle"), [(X86_64, ""), (AARCH64, "aarch64-")])
def test_names(architecture: Architecture, middle: str, tmp_path: Path) -> None:
    name = entry_name("7.3", architecture, "a", "b")
    assert name == f"7.3-{middle}59b271ae1bbc"
    assert entry_name("7.3", architecture, "a", "c") != name
    assert named_for(tmp_path / name) is architecture


def test_those_of_an_architecture_in_the_order_of_their_making(tmp_path: Path) -> None:
    for time, name in enumerate(("z-1", "a-2", "m-aarch64-3")):
        os.utime(make(tmp_path / name) / "manifest.json", (time, time))
    assert [entry.folder.name for entry in Entry.newest(tmp_path, X86_64)] == ["a-2", "z-1"]
    assert [entry.folder.name for entry in Entry.newest(tmp_path, AARCH64)] == ["m-aarch64-3"]
