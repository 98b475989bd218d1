"""Mount tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyiommufd.host.uses.mounts import block_number, mount_table, number_behind, swap_areas, unescape
from tests.fake_sysfs import FakeSysfs


@pytest.mark.parametrize(
    ("text", "plain"),
    [("/a", "/a"), ("/a\\040b", "/a b"), ("\\011\\012", "\t\n"), ("/a\\134040b", "/a\\040b"), ("\\134", "\\")],
)
def test_escapes_of_proc(text: str, plain: str) -> None:
    assert unescape(text) == plain


def test_table_of_this_process() -> None:
    found = {mount.point: mount for mount in mount_table([])}
    assert found["/"].is_root
    assert found["/proc"].kind == "proc"
    assert found["/proc"].place == "/proc"


def test_lines_that_are_cut_or_odd(fake: FakeSysfs) -> None:
    (fake.proc / "1/mountinfo").write_text("1 0 8:1 / / rw\n2 0 x:y / /a rw - ext4 s rw\n3 0 8:2 / /b rw - tmpfs  rw\n")
    (mount,) = mount_table([])
    assert (mount.point, mount.source, mount.options) == ("/b", "", ("rw",))


def test_swap_file_counts_for_its_filesystem(fake: FakeSysfs, tmp_path: Path) -> None:
    area = tmp_path / "swap file"
    area.touch()
    escaped = str(area).replace(" ", "\\040")
    head = "Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n"
    (fake.proc / "swaps").write_text(f"{head}{escaped} file 8 0 -2\n/nowhere partition 8 0 -2\n")
    assert swap_areas() == [(str(area), area.stat().st_dev)]


def test_numbers_of_what_is_no_disk(tmp_path: Path) -> None:
    assert number_behind(str(tmp_path / "nowhere")) is None
    assert number_behind("a\0b") is None
    assert [block_number(path) for path in ("/dev/null", "/dev/nowhere", "server:/export", "/dev/\0")] == [None] * 4


@pytest.mark.parametrize("odd", ["\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\udcff"], ids=ascii)
def test_lines_end_in_newlines_alone(fake: FakeSysfs, odd: str) -> None:
    """The kernel escapes blanks, tabs, newlines and backslashes, and nothing else (Linux 7.3, fs/proc_namespace.c)."""
    text = f"1 0 8:1 / /a{odd}b rw - ext4 s{odd} rw\n2 0 8:2 / /c rw - ext4 s rw\n"
    (fake.proc / "self/mountinfo").write_bytes(os.fsencode(text))
    assert [(mount.point, mount.source) for mount in mount_table([])] == [(f"/a{odd}b", f"s{odd}"), ("/c", "s")]
