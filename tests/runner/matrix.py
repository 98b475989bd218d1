"""The core tests on every combination of kernel, QEMU and IOMMU.

python -m tests.runner.matrix [--only TEXT]     also by hand; --only: the combinations whose line has the text
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pyiommufd.testing.kernel_build import build_kernel
from pyiommufd.testing.kernels import CachedKernel, release_order
from pyiommufd.testing.machine import IOMMU_KINDS, iommu_arguments, iommu_device
from pyiommufd.testing.newer_qemu import fetch
from pyiommufd.testing.qemu import QEMU, find_qemu
from tests.runner.core_tests import shortfalls
from tests.runner.runs import AT_A_TIME, ROOT, Run, guest_command, read_report, title

OLDER_KERNEL = "6.12"
SECONDS = 900

# The QEMU that brought what a kind of IOMMU takes. That an older one lacks it is the only reason not to run a pair.
SINCE_QEMU = {"intel-first-stage": (9, 2), "amd": (10, 2)}

# These do not isolate interrupts, so that the kernel refuses every bind without the exception.
UNSAFE_INTERRUPTS = ("amd", "virtio")


@dataclass(frozen=True)
class Combination:
    """A machine to run the core tests on."""

    kernel: CachedKernel
    qemu: QEMU
    iommu: str

    def __str__(self) -> str:
        return f"{self.kernel.release:<12} {'.'.join(map(str, self.qemu.version)):<6} {self.iommu:<18}"

    def obstacle(self) -> str | None:
        """Why it cannot be run, where that is for a reason known beforehand."""
        device = iommu_device(self.iommu)
        try:
            iommu_arguments(self.iommu, self.qemu.device_properties(device) if device else frozenset())
        except LookupError as error:
            if self.qemu.version < SINCE_QEMU.get(self.iommu, (0, 0)):
                return f"this QEMU has no {error}"
        return None


@dataclass
class Result:
    """What came of a combination.

    Attributes:
        run: The figures.
        obstacle: Why it was not run.
        shortfalls: What it had to run and did not; each counts as a failure.
        output: What the guest printed.
    """

    combination: Combination
    run: Run
    obstacle: str | None = None
    shortfalls: list[str] = field(default_factory=list)
    output: str = ""

    def line(self) -> str:
        """Its line of the table."""
        run = self.run
        if self.obstacle:
            return f"{self.combination} {'not run':>21}          {self.obstacle}"
        reasons = "; ".join(f"{count}x {reason}" for reason, count in run.skipped.most_common())
        figures = f"{run.passed:6} {run.failed:6} {run.skipped.total():7} {run.seconds:6.1f} s"
        return f"{self.combination} {figures}  {reasons}".rstrip()


def run_one(combination: Combination) -> Result:
    """Run the core tests on one machine."""
    run = Run(f"core tests, {combination}")
    if obstacle := combination.obstacle():
        run.skipped[obstacle] += 1
        return Result(combination, run, obstacle)
    options = [
        f"--kernel={combination.kernel.folder / 'bzImage'}",
        f"--qemu={combination.qemu.path}",
        f"--iommu={combination.iommu}",
    ]
    if combination.iommu in UNSAFE_INTERRUPTS:
        options.append("--append=iommufd.allow_unsafe_interrupts=1")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = guest_command(folder, options, ["-q", "tests/guest/core"], SECONDS)
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        cases = read_report(Path(folder) / "report.xml")
    run.count(cases, done.returncode)
    release = release_order(combination.kernel.release)
    missing = [] if cases is None else shortfalls(combination.iommu, cases, release)
    run.failures += missing
    run.seconds = time.monotonic() - start
    return Result(combination, run, None, missing, done.stdout)


def combinations(kernels: Iterable[CachedKernel], qemus: Iterable[QEMU]) -> list[Combination]:
    """Every combination, in the order of the table."""
    qemus = list(qemus)
    return [Combination(kernel, qemu, iommu) for kernel in kernels for qemu in qemus for iommu in IOMMU_KINDS]


def prepare() -> tuple[list[CachedKernel], list[QEMU]]:
    """The kernels and QEMUs, made where they are not in the cache.

    Raises:
        GuestError: One of them is not to be had.
    """
    kernels = [build_kernel(), build_kernel(OLDER_KERNEL)]
    # The system's, whatever PYIOMMUFD_QEMU names.
    system = find_qemu(environment={"PATH": os.environ.get("PATH", os.defpath)})
    return kernels, [system, find_qemu(str(fetch().program))]


def start_matrix(pool: Executor, chosen: Sequence[Combination]) -> list[Future[Result]]:
    """Have a pool run the core tests on each machine."""
    return [pool.submit(run_one, combination) for combination in chosen]


def show_matrix(results: Sequence[Result]) -> Run:
    """Print the table, and what failed before it. Returns the sum."""
    title(f"core tests on {len(results)} combinations of kernel, QEMU and IOMMU")
    for result in results:
        if result.run.failed:
            print(f"---- {result.combination}\n{result.output}\n----")
            print("".join(f"{line}\n" for line in result.shortfalls), end="")
    print(f"{'kernel':<12} {'QEMU':<6} {'IOMMU':<18} passed failed skipped     time  why skipped")
    total = Run("core tests, all pairs")
    for result in results:
        print(result.line())
        total.passed += result.run.passed
        total.failures += [f"{result.combination}: {failure}" for failure in result.run.failures]
        total.skipped += Counter(
            {f"{result.combination.iommu}: {why}": count for why, count in result.run.skipped.items()}
        )
        total.seconds += result.run.seconds
    return total


def main() -> int:
    """Run the matrix alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="only combinations whose line has this text")
    only = parser.parse_args().only
    chosen = [each for each in combinations(*prepare()) if only in str(each)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        total = show_matrix([future.result() for future in start_matrix(pool, chosen)])
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped.total()} skipped")
    return int(total.failed > 0 or not total.passed)


if __name__ == "__main__":
    sys.exit(main())
