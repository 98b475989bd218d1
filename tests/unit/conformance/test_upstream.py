"""How the kernel's C programs are built and read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pyiommufd.testing.guest.machine import Igb, RootPort
from pyiommufd.testing.plugin.configuration import GuestConfiguration
from pyiommufd.testing.provision.kernels import CachedKernel
from tests.conformance.upstream import PROGRAMS, Outcome, Program, ProgramError, build, load, read_tap

PROGRAM = Program("tiny", "tiny", ("tiny.c", "more.c"), (), "tests/conformance/tiny", shared=("lib/*.c",))


@pytest.fixture
def kernel(tmp_path: Path) -> CachedKernel:
    """As much of a kernel as a program is built from."""
    folder = tmp_path / "kernel"
    selftests = folder / "source/tools/testing/selftests"
    (selftests / "tiny/lib").mkdir(parents=True)
    (selftests / "kselftest_harness.h").write_text("#define STATUS 3\nint fixtures;\n")
    (selftests / "tiny/tiny.c").write_text('#include "kselftest_harness.h"\nint main(void) { return STATUS; }\n')
    (selftests / "tiny/more.c").write_text(
        "int shared(void);\nint main(void) { return shared() + TEST_TIMEOUT_DEFAULT / 300; }\n"
    )
    (selftests / "tiny/lib/shared.c").write_text("int shared(void) { return 2; }\n")
    (folder / "source/drivers/iommu/iommufd").mkdir(parents=True)
    (folder / "source/drivers/iommu/iommufd/iommufd_test.h").write_text("")
    (folder / "headers/include/linux").mkdir(parents=True)
    return CachedKernel(folder, {"release": "7.3.4"})


def status(folder: Path, name: str = "tiny") -> int:
    return subprocess.run([folder / name], check=False).returncode


def test_a_program_is_built_once(kernel: CachedKernel, tmp_path: Path) -> None:
    entry = build(PROGRAM, kernel, cache=tmp_path)
    assert status(entry) == 3
    # With what they share, and more time than upstream's.
    assert status(entry, "more") == 3
    assert entry.name.startswith("tiny-7.3.4-")
    before = (entry / "tiny").stat()
    assert build(PROGRAM, kernel, cache=tmp_path) == entry
    assert (entry / "tiny").stat() == before


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
    entry = build(PROGRAM, kernel, cache=tmp_path)
    program, manifest = entry / "more", entry / "manifest.json"
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
    assert load(entry) is None
    assert status(build(PROGRAM, kernel, cache=tmp_path), "more") == 3
    assert load(entry) == entry


def test_what_a_killed_build_left_is_no_obstacle(kernel: CachedKernel, tmp_path: Path) -> None:
    entry = build(PROGRAM, kernel, cache=tmp_path)
    entry.rename(entry.with_name(f".{entry.name}.building"))
    assert build(PROGRAM, kernel, cache=tmp_path) == entry
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


def test_the_machine_of_a_program() -> None:
    vfio = next(program for program in PROGRAMS if program.name == "vfio")
    machine = vfio.machine("bzImage", "qemu")
    assert (machine.kernel, machine.qemu, machine.devices) == ("bzImage", "qemu", (RootPort(Igb()),))
    assert "hugepages=1" in machine.kernel_arguments
    iommufd = next(program for program in PROGRAMS if program.name == "iommufd")
    assert iommufd.machine("bzImage", None) == GuestConfiguration(kernel="bzImage")


def test_every_variant_of_containers_is_left_out() -> None:
    vfio = next(program for program in PROGRAMS if program.name == "vfio")
    assert {"vfio_type1_iommu", "iommufd_compat_type1v2", "vfio_type1v2_iommu_anonymous"} < set(vfio.left_out)
    assert not any(
        variant == "iommufd" or variant.startswith(("iommufd_anon", "iommufd_same")) for variant in vfio.left_out
    )
