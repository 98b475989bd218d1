"""Nothing is left out of the runs, or of what is said of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.runner import plan
from tests.runner.plan import Everything, Work
from tests.runner.runs import ROOT, Job, Run
from tests.runner.suite import carry_out

# Run by tests of tests/boot in guests that have those devices, by the matrix, and as conformance.
_BY_OTHERS = ("tests/guest/devices/", "tests/guest/uses/", "tests/guest/core/", "tests/conformance/", "tests/abi/")


class NeverDone(Executor):
    """An executor that accepts work and never runs it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def jobs(works: list[Work]) -> Iterator[Job]:
    for work in works:
        if isinstance(work.do, partial) and isinstance(work.do.args[0], Job):
            yield work.do.args[0]


def files_of(works: list[Work]) -> set[str]:
    paths = [ROOT / path for job in jobs(works) for path in job.tests]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))]
    return {str(file.relative_to(ROOT)) for file in files}


@pytest.fixture
def every_file() -> set[str]:
    return {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize("whole", [False, True])
def test_everything_has_every_file(every_file: set[str], whole: bool) -> None:
    everything = list(Everything(NeverDone(), whole=whole).works())
    later = {"boot, causes", "boot, devices", "boot, handover", "boot, pages"}
    assert later < {work.name for work in everything}
    have = files_of(everything) | {f"tests/boot/test_{name.removeprefix('boot, ')}.py" for name in later}
    assert have == {file for file in every_file if not file.startswith(_BY_OTHERS)}
    assert {"ABI", "conformance, iommufd", "conformance, vfio", "matrix, intel"} < {work.name for work in everything}


def test_while_working_every_room_of_the_guest_is_entered(every_file: set[str]) -> None:
    rooms = {file.split("/")[2] for file in files_of(plan.quick(())) if file.startswith("tests/guest/")}
    assert rooms == {file.split("/")[2] for file in every_file if file.startswith("tests/guest/")} - {"devices", "uses"}


def test_what_cannot_be_done_is_a_failure_and_the_others_go_on() -> None:
    def fail() -> list[Run]:
        raise OSError("no kernel is available")

    works = [Work("first", fail), Work("second", lambda: [Run("second", passed=1)])]
    with ThreadPoolExecutor(1) as pool:
        first, second = carry_out(works, pool)
    assert (first.name, first.failures) == ("first", ["OSError: no kernel is available"])
    assert (second.name, second.passed) == ("second", 1)


def test_chosen_paths_go_to_their_machines() -> None:
    paths = ["tests/unit/host", "tests/guest/claims/test_kill.py", "tests/guest/kernel", "tests/guest/smmuv3"]
    found = {job.machine: (job.tests, job.options) for job in jobs(plan.chosen(paths, ["-x"]))}
    assert found == {
        None: (("tests/unit/host",), ("-x",)),
        plan.CLAIMS: (("tests/guest/claims/test_kill.py",), ("-x",)),
        plan.DEFAULT: (("tests/guest/kernel",), ("-x",)),
        plan.SMMUV3: (("tests/guest/smmuv3",), ("-x",)),
    }


def test_the_table_of_folders_is_complete(every_file: set[str]) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where a test belongs")[2]
    named = set()
    for row in re.findall(r"^\| (`tests/.*?) \|", text, re.MULTILINE):
        first, *others = re.findall(r"`(.*?)`", row)
        named |= {first, *(f"{first.rpartition('/')[0]}/{other}" for other in others)}
    package = ROOT / "pyiommufd"
    packages = {str(module.parent.relative_to(package)) for module in package.rglob("*.py")}
    for file in every_file:
        parts = file.split("/")
        folder = "/".join(parts[: 3 if parts[1] == "guest" else 2])
        assert folder in named, folder
        if parts[1] in ("unit", "guest"):
            # Below tests/unit it may also be a folder of tests that is tested.
            mirrored = str(Path(*parts[2:-1]))
            above = "tests" if parts[1] == "unit" else "tests/guest"
            assert mirrored in packages or f"{above}/{mirrored}" in named, file
    assert {"tests/runner", "tests/benchmarks"} < named
    assert all((ROOT / folder).is_dir() for folder in named)
