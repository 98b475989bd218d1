"""How the kernel's C programs are built and read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pyiommufd.testing.kernels import CachedKernel
from tests.conformance.upstream import Outcome, Program, ProgramError, build, load, read_tap

PROGRAM = Program("tiny", "tiny", ("tiny.c",), (), "tests/conformance/tiny")


@pytest.fixture
def kernel(tmp_path: Path) -> CachedKernel:
    """As much of a kernel as a program is built from."""
    folder = tmp_path / "kernel"
    selftests = folder / "source/tools/testing/selftests"
    (selftests / "tiny").mkdir(parents=True)
    (selftests / "kselftest_harness.h").write_text("#define STATUS 3\n")
    (selftests / "tiny/tiny.c").write_text('#include "kselftest_harness.h"\nint main(void) { return STATUS; }\n')
    (folder / "source/drivers/iommu/iommufd").mkdir(parents=True)
    (folder / "source/drivers/iommu/iommufd/iommufd_test.h").write_text("")
    (folder / "headers/include/linux").mkdir(parents=True)
    return CachedKernel(folder, {"release": "7.3.4"})


def status(program: Path) -> int:
    return subprocess.run([program], check=False).returncode


def test_a_program_is_built_once(kernel: CachedKernel, tmp_path: Path) -> None:
    program = build(PROGRAM, kernel, cache=tmp_path)
    assert status(program) == 3
    assert program.parent.name.startswith("tiny-7.3.4-")
    before = program.stat()
    assert build(PROGRAM, kernel, cache=tmp_path) == program
    assert program.stat() == before


def test_what_it_is_made_from_names_the_entry(kernel: CachedKernel, tmp_path: Path) -> None:
    first = build(PROGRAM, kernel, cache=tmp_path)
    (kernel.folder / "source/tools/testing/selftests/kselftest_harness.h").write_text("#define STATUS 4\n")
    second = build(PROGRAM, kernel, cache=tmp_path)
    assert second != first
    assert (status(first), status(second)) == (3, 4)
    (kernel.folder / "headers/include/linux/new.h").write_text("")
    assert build(PROGRAM, kernel, cache=tmp_path) not in (first, second)


@pytest.mark.parametrize("damage", ["cut", "no program", "no manifest", "half a manifest", "another format"])
def test_a_damaged_entry_is_made_again(kernel: CachedKernel, tmp_path: Path, damage: str) -> None:
    program = build(PROGRAM, kernel, cache=tmp_path)
    manifest = program.parent / "manifest.json"
    if damage == "cut":
        program.write_bytes(program.read_bytes()[:-1])
    elif damage == "no program":
        program.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:10])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    assert load(program.parent) is None
    assert status(build(PROGRAM, kernel, cache=tmp_path)) == 3
    assert load(program.parent) == program


def test_what_a_killed_build_left_is_no_obstacle(kernel: CachedKernel, tmp_path: Path) -> None:
    program = build(PROGRAM, kernel, cache=tmp_path)
    entry = program.parent
    entry.rename(entry.with_name(f".{entry.name}.building"))
    assert build(PROGRAM, kernel, cache=tmp_path) == program
    assert not entry.with_name(f".{entry.name}.building").exists()


def test_what_does_not_compile_says_why(kernel: CachedKernel, tmp_path: Path) -> None:
    (kernel.folder / "source/tools/testing/selftests/tiny/tiny.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(ProgramError, match="nothing"):
        build(PROGRAM, kernel, cache=tmp_path)
    assert not list((tmp_path / "conformance").glob("[!.]*"))


def test_a_kernel_without_source(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="cannot be built"):
        build(PROGRAM, CachedKernel(tmp_path / "none", {"release": "7.3.4"}), cache=tmp_path)


TAP = """\
TAP version 13
1..5
# Starting 5 tests from 2 test cases.
#  RUN           one.first ...
#            OK  one.first
ok 1 one.first
not ok 2 one.variant.second
ok 3 one.third # SKIP Skipping test for variant x
ok 4 one.fourth # XFAIL as known
not ok 5 one.fifth # XPASS what was to fail
# Totals: pass:1 fail:1 xfail:1 xpass:1 skip:1 error:0
"""


def test_tap() -> None:
    assert read_tap(TAP) == {
        "one.first": Outcome("pass"),
        "one.variant.second": Outcome("fail"),
        "one.third": Outcome("skip", "Skipping test for variant x"),
        "one.fourth": Outcome("xfail", "as known"),
        "one.fifth": Outcome("xpass", "what was to fail"),
    }


def test_tap_of_a_program_that_died() -> None:
    with pytest.raises(ProgramError, match="of 5 planned cases 4"):
        read_tap(TAP.replace("ok 1 one.first\n", ""))
    with pytest.raises(ProgramError, match="None planned"):
        read_tap("")
