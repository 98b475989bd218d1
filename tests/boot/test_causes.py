"""The causes that need a machine of their own, on each kernel that is here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd.testing.provision.kernels import CachedKernel, cache_folder, cached_kernels
from tests.runner.causes import MACHINES, CauseRow, Machine, as_markdown, run_machine
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
    page = list(causes_of(Path("docs/causes.md")))
    assert [row for row in rows if not any(is_of(row, *cells) for cells in page)] == []


def causes_of(page: Path) -> Iterator[tuple[str, str, str, str]]:
    """The rows of its tables: ioctl, errno, cause and what mends it."""
    ioctl = ""
    for line in page.read_text().splitlines():
        if line.startswith("## "):
            ioctl = line.removeprefix("## ").strip("`")
        elif line.startswith("| E"):
            code, cause, fix = line.strip("| ").split(" | ")
            yield ioctl, code, cause, fix


def is_of(row: CauseRow, ioctl: str, code: str, cause: str, fix: str) -> bool:
    """Whether a row of the page's tables is what this kernel has shown."""
    told = cause == row.cause or cause.startswith(f"{row.cause}; not on ")
    mended = row.lacks in cause if row.lacks else fix == as_markdown(row.fix)
    return (ioctl, code) == (row.ioctl, row.errno) and told and mended
