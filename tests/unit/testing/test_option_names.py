"""Errors name the options of where the user is: in a program, on the command line, in pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd.testing import GuestMissingError
from pyiommufd.testing.guest.qemu import QEMU, find_qemu, iommu_error
from pyiommufd.testing.option_names import speak_of
from pyiommufd.testing.provision.kernels import find_kernel


def errors(tmp_path: Path) -> list[str]:
    with pytest.raises(GuestMissingError) as no_kernel:
        find_kernel(environment={"XDG_CACHE_HOME": str(tmp_path)}, root=tmp_path)
    with pytest.raises(GuestMissingError) as no_image:
        find_kernel("/nowhere")
    with pytest.raises(GuestMissingError) as no_program:
        find_qemu("no-such")
    return [*map(str, (no_kernel.value, no_image.value, no_program.value)), str(iommu_error(QEMU("q", (8, 2)), "x"))]


def test_names(tmp_path: Path) -> None:
    kernel, image, program, iommu = errors(tmp_path)
    assert "Guest(kernel=…) or PYIOMMUFD_KERNEL" in kernel
    assert image.startswith("Guest(kernel=…): ")
    assert program.startswith("Guest(qemu=…): ")
    assert "Guest(qemu=…) or PYIOMMUFD_QEMU" in iommu
    for place, start in (("command", "--"), ("pytest", "--guest-")):
        speak_of(place)  # type: ignore[arg-type]
        kernel, image, program, iommu = errors(tmp_path)
        assert f", {start}kernel or PYIOMMUFD_KERNEL" in kernel
        assert image.startswith(f"{start}kernel: ")
        assert program.startswith(f"{start}qemu: ")
        assert f"with {start}qemu or PYIOMMUFD_QEMU" in iommu
    speak_of("pytest", ["kernel"])
    kernel, image, program, iommu = errors(tmp_path)
    assert image.startswith("@pytest.mark.guest(kernel=…): ")
    assert program.startswith("--guest-qemu: ")
    speak_of("program")


MARKED = """\
import pytest

@pytest.mark.guest(kernel="/nowhere")
def test_kernel(): ...

@pytest.mark.guest(qemu="no-such")
def test_qemu(): ...

def test_none(): ...
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_what_a_marker_asked_for_is_blamed_on_the_marker(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_it.py").write_text(MARKED)
    command = [sys.executable, "-m", "pytest", "--guest", "--guest-kernel=/nothing", *workers]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "did not start: @pytest.mark.guest(kernel=…): there is no kernel image /nowhere" in done.stdout
    assert "did not start: @pytest.mark.guest(qemu=…): no-such is not a program" in done.stdout
    assert "did not start: --guest-kernel: there is no kernel image /nothing" in done.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["pyiommufd.cli", "guest", "--kernel=/nowhere", "--", "true"], ": --kernel: there is no kernel image"),
        (["pytest", "--guest", "--guest-kernel=/nowhere", "test_it.py"], ": --guest-kernel: there is no kernel image"),
    ],
)
def test_each_says_where_it_is(command: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_it.py").write_text("def test_it(): ...\n")
    arguments = [sys.executable, "-m", *command]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode
    assert said in done.stdout + done.stderr
