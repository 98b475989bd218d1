"""The examples answer --help, missing arguments and a device that is not there.

That they run is a matter of the pages that name them; `tests/guest/vmm/test_examples.py` has what they refuse.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages.blocks import ROOT, blocks, pages

PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
NEED_ARGUMENTS = {"migrate": "DEVICE, save|load", "nvme_identify": "DEVICE", "qemu_passthrough": "DEVICE, QEMU"}
WITHOUT_DEVICE = {"fault_service"}
MORE_ARGUMENTS = {"migrate": ["save"], "qemu_passthrough": ["qemu-system-x86_64"]}


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_help_is_its_docstring(program: Path) -> None:
    text = ast.get_docstring(ast.parse(program.read_text()))
    assert text is not None
    done = run(program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {program.name} ")
    assert text in done.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_wrong_arguments(program: Path) -> None:
    wrong = [["--no-such-option"], *([[]] if program.stem in NEED_ARGUMENTS else [])]
    for arguments in wrong:
        done = run(program, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"usage: {program.name} ")
        if not arguments:
            assert done.stderr.endswith(f" are required: {NEED_ARGUMENTS[program.stem]}\n")


@pytest.mark.parametrize(
    "program", [each for each in PROGRAMS if each.stem not in WITHOUT_DEVICE], ids=lambda program: program.stem
)
def test_device_that_is_not_there(program: Path) -> None:
    done = run(program, "nosuch", *MORE_ARGUMENTS.get(program.stem, []))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("there is no device 'nosuch'; ")


def test_help_of_the_demo() -> None:
    done = subprocess.run([ROOT / "examples/demo", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "examples/demo DEVICE [PEER]" in done.stdout
    assert "set -" not in done.stdout


def test_each_is_run_by_a_test() -> None:
    """By a page's block; or, as it takes a device or a machine of its own, by the test that is named here."""
    elsewhere = {"examples/ansible/claim.yml": "tests/boot/test_ansible.py"}
    elsewhere["examples/qemu_passthrough.py"] = "tests/guest/vmm/test_examples.py"
    run_by_pages = "".join(block.text for page in pages() for block in blocks(page) if block.not_run is None)
    for example in sorted(path for path in (ROOT / "examples").rglob("*") if path.is_file()):
        name = str(example.relative_to(ROOT))
        assert name in (ROOT / elsewhere[name]).read_text() if name in elsewhere else name in run_by_pages, name


def test_commands_in_docstrings_are_on_pages() -> None:
    """What the docstrings say to type is run: by pages in a guest that runs, where it is to start one."""
    shown = "".join(block.text for page in pages() for block in blocks(page) if block.not_run is None)
    for program in PROGRAMS:
        for line in (ast.get_docstring(ast.parse(program.read_text())) or "").splitlines():
            if line.startswith("    pyiommufd guest"):
                assert line.strip().removeprefix("pyiommufd guest -- ") in shown, program.name
