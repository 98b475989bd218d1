"""`pytest --guest`: which guest each test gets, and what becomes of those after a guest that has ended."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.boot.plugin_project import Project, outcome
from tests.boot.processes import descendants, read_proc, wait_gone
from tests.patience import patience, until

pytestmark = pytest.mark.boots


def test_what_ends_the_guest_fails_its_test_alone(project: Project) -> None:
    project.write(
        test_end__py="""\
        import os, pathlib, signal, time

        def boot():
            return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()

        def test_before(record_property):
            record_property("boot", boot())

        def test_panic():
            pathlib.Path("/proc/sysrq-trigger").write_text("c")

        def test_after_panic(record_property):
            record_property("boot", boot())

        def test_killed():
            os.kill(os.getpid(), signal.SIGKILL)

        def test_after_killed(record_property):
            record_property("boot", boot())

        def test_hangs():
            time.sleep(100_000)

        def test_after_hang(record_property):
            record_property("boot", boot())
        """
    )
    limit = round(patience(5))
    result = project.pytest("--guest", f"--guest-timeout={limit}", "-v")
    cases = project.cases()
    assert {name.removeprefix("test_end."): outcome(case) for name, case in cases.items()} == {
        "test_before": "passed",
        "test_panic": "failure",
        "test_after_panic": "passed",
        "test_killed": "failure",
        "test_after_killed": "passed",
        "test_hangs": "failure",
        "test_after_hang": "passed",
    }, result.stdout
    assert result.returncode == 1
    reasons = {name: case.outcomes[0][1] for name, case in cases.items() if case.outcomes}
    assert "Kernel panic - not syncing: sysrq triggered crash" in reasons["test_end.test_panic"]
    assert "signal 9" in reasons["test_end.test_killed"]
    assert f"{limit} s of --guest-timeout" in reasons["test_end.test_hangs"]
    assert re.search(r"Guest console -+\n(.*\n)*?.*sysrq_handle_crash", result.stdout)
    assert re.search(r"Guest stderr -+\n(.*\n)*?.*test_end\.py\", line \d+ in test_hangs", result.stdout)
    boots = [case.properties["boot"] for case in cases.values() if case.properties]
    assert len(set(boots)) == 4


def test_configurations_have_a_guest_each(project: Project) -> None:
    project.write(
        test_kinds__py="""\
        import pathlib

        import pytest

        from pyiommufd.testing import Edu

        groups = pathlib.Path("/sys/kernel/iommu_groups")
        edus = lambda: [d for d in pathlib.Path("/sys/bus/pci/devices").iterdir()
                        if (d / "device").read_text() == "0x11e8\\n"]

        @pytest.fixture(autouse=True)
        def boot(record_property):
            record_property("boot", pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())

        @pytest.mark.guest(iommu="none", devices=[])
        def test_bare():
            assert not list(groups.iterdir())
            assert not edus()

        @pytest.mark.guest(devices=[Edu(), "edu"])
        def test_two():
            assert list(groups.iterdir())
            assert len(edus()) == 2

        @pytest.mark.guest(devices=[], iommu="none")
        def test_bare_again():
            assert not edus()

        @pytest.mark.guest(devices=(Edu(), "edu"), iommu="intel")
        def test_two_again():
            assert len(edus()) == 2

        @pytest.mark.guest(devices=[Edu(), "edu"])
        def test_two_lack_another(vfio_device):
            vfio_device(0xdead, 0xbeef)
        """
    )
    result = project.pytest("--guest", "-v", "-rs")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "there is none; a guest that has it is asked for by @pytest.mark.guest(devices=[…])" in result.stdout
    boots = {name: case.properties["boot"] for name, case in project.cases().items()}
    assert list(boots) == [
        f"test_kinds.test_{name}" for name in ("bare", "bare_again", "two", "two_again", "two_lack_another")
    ]
    first, first_again, second, second_again, _ = boots.values()
    assert first == first_again != second == second_again


def test_marker_without_a_guest(project: Project) -> None:
    project.write(
        test_marked__py="""\
        import pytest

        def test_plain(): ...

        @pytest.mark.guest
        def test_any(): ...

        @pytest.mark.guest(iommu="intel")
        def test_fits(): ...

        @pytest.mark.guest(iommu="amd", memory=512)
        def test_other(): ...
        """
    )
    if not Path("/dev/iommu").exists():
        result = project.pytest("-rs", "--strict-markers")
        assert result.returncode == 0
        assert [outcome(case) for case in project.cases().values()] == ["passed", "skipped", "skipped", "skipped"]
        assert "no /dev/iommu: pytest --guest" in result.stdout
    inner = [project.python, "-m", "pytest", "-rs", "-v", "-p", "no:cacheprovider"]
    launcher = [project.python, "-m", "pyiommufd.cli", "guest", "--", *inner]
    there = subprocess.run(
        launcher, cwd=project.folder, env=project.environ(), capture_output=True, text=True, check=False
    )
    assert "3 passed, 1 skipped" in there.stdout, there.stdout + there.stderr
    assert "the IOMMU is intel, not amd; memory is 1024, not 512" in there.stdout


def test_guest_that_cannot_be_had(project: Project) -> None:
    project.write(test_it__py="def test_one(): ...\ndef test_two(): ...\n")
    result = project.pytest("--guest", "--guest-kernel=/nowhere/bzImage")
    assert result.returncode == 1
    assert [outcome(case) for case in project.cases().values()] == ["error", "error"]
    assert "there is no kernel image /nowhere/bzImage" in result.stdout


def with_guest(pid: int) -> list[int]:
    """All that a process has started, once there is a guest among it."""
    found = list(descendants(pid))
    return found if any("\0-kernel\0" in read_proc(f"/proc/{one}/cmdline") for one in found) else []


def test_killed_run_leaves_no_process(project: Project) -> None:
    project.write(test_long__py="import time\ndef test_long():\n    time.sleep(1000)\n")
    with subprocess.Popen(
        project.command("--guest"), cwd=project.folder, env=project.environ(), stdout=subprocess.DEVNULL
    ) as process:
        try:
            left = until(lambda: with_guest(process.pid), "pytest starts a guest")
        finally:
            process.kill()
    wait_gone(*left)
