"""Tests in workers of pytest-xdist that come to no guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MARKERS = {
    "guest('amd')": "the guest marker takes keyword arguments only",
    "guest(foo=1)": "guest(foo=…): there is only iommu",
    "guest(memory=[1])": "guest(memory=[1]): a whole number of MiB is wanted",
    "guest(qemu_arguments=[3])": "guest(qemu_arguments=[3]): a list of strings is wanted",
    "guest(devices=[object])": "guest(devices=[<class 'object'>]): object is a class",
}


def run(folder: Path, text: str, *arguments: str) -> str:
    (folder / "pytest.ini").touch()
    (folder / "test_it.py").write_text(f"import pytest\n{text}")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("guest", [True, False])
def test_wrong_marker_fails_its_test(tmp_path: Path, guest: bool) -> None:
    """Raised while a worker collects, the error would end the run and not be shown."""
    markers = MARKERS if guest else dict(list(MARKERS.items())[:1])
    tests = "".join(f"@pytest.mark.{marker}\ndef test_{n}(): ...\n" for n, marker in enumerate(markers))
    said = run(tmp_path, tests, *["--guest"] * guest)
    assert f"{len(markers)} error" in said
    for number, reason in enumerate(markers.values()):
        assert f"test_it.py::test_{number}: {reason}" in said


def test_guest_that_does_not_start_is_tried_once(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\necho started >>{tmp_path}/log\necho it is broken >&2\nexit 1\n")
    qemu.chmod(0o755)
    said = run(tmp_path, "def test_1(): ...\ndef test_2(): ...\ndef test_3(): ...\n", "--guest", f"--guest-qemu={qemu}")
    assert "3 errors" in said
    assert said.count("did not start") >= 3
    assert said.count("it is broken") >= 3
    assert (tmp_path / "log").read_text() == "started\n"
