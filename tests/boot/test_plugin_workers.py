"""`pytest --guest -n 2`: each worker of pytest-xdist has a guest of its own."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from pyiommufd.testing.guest.qemu import find_qemu
from tests.boot.plugin_project import Project, outcome
from tests.boot.processes import descendants, read_proc, wait_gone
from tests.patience import until

pytestmark = pytest.mark.boots

TESTS = """\
    import os
    import pytest

    @pytest.fixture(scope="module", autouse=True)
    def module():
        yield
        print("module torn down")

    @pytest.fixture(autouse=True)
    def place(record_property):
        record_property("guest", open("/proc/sys/kernel/random/boot_id").read())
        record_property("worker", os.environ["PYTEST_XDIST_WORKER"])

    def test_passes():
        assert os.uname().nodename == "pyiommufd-guest"

    @pytest.mark.skip(reason="not now")
    def test_skipped(): ...

    @pytest.mark.xfail
    def test_fails():
        assert 0

    def test_last(ioas):
        ioas.map(5)
"""


def test_each_worker_has_a_guest(project: Project) -> None:
    project.write(test_a__py=TESTS, test_b__py=TESTS)
    result = project.pytest("--guest", "-n", "2", "--dist=loadfile", "-q", "--durations=3")
    assert result.returncode == 1
    assert "2 failed, 2 passed, 2 skipped, 2 xfailed" in result.stdout, result.stdout + result.stderr
    assert "booting a guest for each worker" in result.stdout
    assert "slowest 3 durations" in result.stdout
    cases = project.cases()
    assert {name: outcome(case) for name, case in cases.items()} == {
        f"test_{file}.{name}": kind
        for file in "ab"
        for name, kind in {"test_passes": "passed", "test_skipped": "skipped", "test_fails": "skipped"}.items()
    } | {f"test_{file}.test_last": "failure" for file in "ab"}
    ran = [case.properties for case in cases.values() if case.properties]
    assert len(ran) == 6
    assert len({each["guest"] for each in ran}) == len({each["worker"] for each in ran}) == 2
    assert len({tuple(each.values()) for each in ran}) == 2
    assert result.stdout.count("module torn down") == 2
    # A user's error, which ends at the user's line.
    assert result.stdout.count(">       ioas.map(5)\nE       TypeError: ") == 2
    assert "kernel/memory" not in result.stdout


def test_interrupted_run_leaves_no_process(project: Project) -> None:
    project.write(**{f"test_{name}__py": "import time\ndef test_long():\n    time.sleep(1000)\n" for name in "ab"})

    def guests(pid: int) -> list[int]:
        return [one for one in descendants(pid) if "\0-kernel\0" in read_proc(f"/proc/{one}/cmdline")]

    def all_of(pid: int) -> list[int]:
        return list(descendants(pid)) if len(guests(pid)) >= 2 else []

    with subprocess.Popen(
        project.command("--guest", "-n", "2"),
        cwd=project.folder,
        env=project.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            left = until(lambda: all_of(process.pid), "both workers start a guest")
        finally:
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == pytest.ExitCode.INTERRUPTED
    wait_gone(*left)


def test_guest_in_which_no_test_can_start_is_booted_once(project: Project) -> None:
    qemu = project.folder / "qemu"
    qemu.write_text(
        f'#!/bin/sh\ncase "$*" in *-kernel*) echo >>{project.folder}/boots;; esac\nexec {find_qemu().path} "$@"\n'
    )
    qemu.chmod(0o755)
    project.write(
        conftest__py="import os\nif os.path.exists('/.guest'):\n    raise RuntimeError('not here')\n",
        test_it__py="def test_1(): ...\ndef test_2(): ...\ndef test_3(): ...\n",
    )
    result = project.pytest("--guest", "-n", "1", f"--guest-qemu={qemu}")
    assert "3 errors" in result.stdout, result.stdout + result.stderr
    assert {outcome(case) for case in project.cases().values()} == {"error"}
    for case in project.cases().values():
        assert "before this test could start in the guest: pytest in the guest ended with status 4" in str(
            case.outcomes
        )
    assert "RuntimeError: not here" in result.stdout
    assert (project.folder / "boots").read_text() == "\n"


# What pytest-xdist does with --dist=loadgroup, in a way that every pytest follows.
CHANGED_IDS = """\
    import os

    def pytest_collection_modifyitems(items):
        for item in () if os.path.exists("/.guest") else items:
            kind = type(item)
            item.__class__ = type(kind.__name__, (kind,), {"nodeid": f"{item.nodeid}@group", "__module__": "x"})
"""


def test_test_that_wants_no_more_stops_the_run(project: Project) -> None:
    """And node ids that a plugin changes in the worker are known in the guest as they were."""
    project.write(
        conftest__py=CHANGED_IDS,
        test_it__py="""\
        def test_stops(request):
            request.session.shouldstop = "that is enough"

        def test_never(): ...
        """,
    )
    result = project.pytest("--guest", "-n", "1")
    assert "that is enough" in result.stdout, result.stdout + result.stderr
    assert {name: outcome(case) for name, case in project.cases().items()} == {"test_it.test_stops@group": "passed"}
