"""The causes that need a machine of their own, on each kernel that is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.testing.kernels import CachedKernel, cache_folder, cached_kernels
from tests.runner.causes import MACHINES, Machine, run_machine

pytestmark = pytest.mark.boots

KERNELS = cached_kernels(cache_folder())


@pytest.mark.parametrize("machine", MACHINES, ids=[machine.file for machine in MACHINES])
@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.release for kernel in KERNELS])
def test_each_cause_is_named_first_and_its_fix_works(kernel: CachedKernel, machine: Machine, tmp_path: Path) -> None:
    rows, output, status = run_machine(machine, kernel.folder / "bzImage", tmp_path)
    assert status == 0, output
    assert rows
    assert all(row.good for row in rows), output
