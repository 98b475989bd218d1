"""The list of core tests that must run is that of the tests there are, and a run that skips one is found out."""

from __future__ import annotations

import ast
from pathlib import Path

from pyiommufd.testing.guest.machine import IOMMU_KINDS
from tests.runner import core_tests
from tests.runner.core_tests import LIMITS, REQUIRED, limits, shortfalls
from tests.runner.reports import Case

NEW = (7, 3, 4)
FOLDER = Path(__file__).resolve().parents[2] / "guest/core"


def test_all_core_tests_are_listed_once() -> None:
    there = {
        f"{file.stem}::{node.name}"
        for file in FOLDER.glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    sets = (
        core_tests.EVERYWHERE,
        core_tests.WITH_IOMMU,
        core_tests.WITH_SHARED_GROUP,
        core_tests.WITH_BRIDGED_DMA,
        core_tests.WITHOUT_IOMMU,
    )
    assert there == core_tests.ALL
    assert sum(map(len, sets)) == len(there)
    assert set(REQUIRED) == set(IOMMU_KINDS)


def test_a_run_that_skips_or_misses_what_it_must_not_is_found_out() -> None:
    names = sorted(REQUIRED["none"])
    full = [Case(name, "passed") for name in names]
    assert shortfalls("none", full, NEW) == []
    # A failure counts by itself; what another kind must run may skip here.
    with_another = [Case(names[0], "failed"), *full[1:], Case("test_dma::test_x", "skipped", "none")]
    assert shortfalls("none", with_another, NEW) == ["test_dma::test_x is in no set of tests/runner/core_tests.py"]
    (missing,) = shortfalls("none", full[1:], NEW)
    assert missing == f"{names[0]} did not run"
    (skipped,) = shortfalls("none", [Case(names[0], "skipped", "no device"), *full[1:]], NEW)
    assert names[0] in skipped
    assert "no device" in skipped


def test_what_a_kernel_cannot_do_may_fail_there_and_only_there() -> None:
    for limit in LIMITS:
        assert limit.tests <= REQUIRED[limit.iommu]
        assert set(limits(limit.iommu, limit.last)) == limit.tests
        assert limits(limit.iommu, NEW) == limits("intel", limit.last) == {}
        cases = [Case(name, "skipped" if name in limit.tests else "passed") for name in REQUIRED[limit.iommu]]
        assert shortfalls(limit.iommu, cases, limit.last) == []
        assert len(shortfalls(limit.iommu, cases, NEW)) == len(limit.tests)
