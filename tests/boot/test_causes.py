"""The causes that need a machine of their own, on each kernel that is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.testing.provision.kernels import CachedKernel, cache_folder, cached_kernels
from tests.runner.causes import MACHINES, Machine, run_machine
from tests.sweeps import sample

pytestmark = pytest.mark.boots

KERNELS = cached_kernels(cache_folder())
RUNS = [
    pytest.param(kernel, machine, id=f"{kernel.release}-{machine.file}")
    for machine in MACHINES
    for kernel in sample(f"boot.causes[{machine.file}]", KERNELS, 1)
]


@pytest.mark.parametrize(("kernel", "machine"), RUNS)
def test_each_cause_is_named_first_and_its_fix_works(kernel: CachedKernel, machine: Machine, tmp_path: Path) -> None:
    rows, output, status = run_machine(machine, kernel.folder / "bzImage", tmp_path)
    assert status == 0, output
    assert rows
    assert all(row.as_expected for row in rows), output
    page = Path("docs/causes.md").read_text()
    assert [row for row in rows if f"| `{row.ioctl}` | {row.errno} | {row.cause} |" not in page] == []
