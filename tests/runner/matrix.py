"""The core tests on every combination of kernel, QEMU and IOMMU, or on a sample of them.

python -m tests.runner.matrix [--only TEXT]     all of them; --only: the combinations whose line has the text
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyiommufd.testing.guest.machine import IOMMU_KINDS, architecture_of, iommu_arguments, iommu_device
from pyiommufd.testing.guest.qemu import QEMU, find_qemu
from pyiommufd.testing.plugin.configuration import GuestConfiguration
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture
from pyiommufd.testing.provision.kernel_build import build_kernel
from pyiommufd.testing.provision.kernels import CachedKernel, release_order
from pyiommufd.testing.provision.newer_qemu import fetch
from pyiommufd.testing.provision.parts import provide
from tests.runner.core_tests import shortfalls
from tests.runner.runs import AT_A_TIME, Job, Run, run_job, title
from tests.sweeps import sample, sampling

OLDER_KERNEL = "6.12"

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

    def job(self) -> Job:
        """The core tests on this machine: what has to run and does not is a failure."""
        machine = GuestConfiguration(
            iommu=self.iommu,
            kernel=str(self.kernel.image),
            qemu=self.qemu.path,
            kernel_arguments=("iommufd.allow_unsafe_interrupts=1",) if self.iommu in UNSAFE_INTERRUPTS else (),
        )
        release = release_order(self.kernel.release)
        return Job(
            f"core, {' '.join(str(self).split())}",
            ("tests/guest/core",),
            machine,
            ("-q",),
            judge=lambda cases: shortfalls(self.iommu, cases, release),
        )


def combinations(
    kernels: Iterable[CachedKernel], qemus: Iterable[QEMU], architecture: Architecture = X86_64
) -> list[Combination]:
    """Every combination with a kind of IOMMU of that architecture, in the order of the table."""
    kinds = [kind for kind in IOMMU_KINDS if architecture_of(kind) is architecture]
    qemus = list(qemus)
    return [Combination(kernel, qemu, iommu) for kernel in kernels for qemu in qemus for iommu in kinds]


def sampled(every: Sequence[Combination]) -> list[Combination]:
    """Those of one kind of IOMMU that this run takes: all, or one: every core test runs on each kind."""
    if not sampling():
        return list(every)
    return sample(f"matrix.{every[0].iommu}", [one for one in every if one.obstacle() is None], 1)


def older_kernel() -> CachedKernel:
    """The older of the two kernels, made where it is not in the cache; by one compiler, as tests run beside it.

    Raises:
        GuestError: It is not available.
    """
    return build_kernel(OLDER_KERNEL, jobs=1)


def system_qemu() -> QEMU:
    """The system's, whatever PYIOMMUFD_QEMU names."""
    return find_qemu(environment={"PATH": os.environ.get("PATH", os.defpath)})


def newer_qemu() -> QEMU:
    """The newer of the two, fetched where it is not in the cache.

    Raises:
        GuestError: It is not available.
    """
    return find_qemu(str(fetch().program))


def arm_combinations(jobs: int | None = None) -> list[Combination]:
    """Those with Arm's IOMMU: the newest kernel and one QEMU, made where they are not in the cache.

    Args:
        jobs: Compilers at a time; None: one a CPU.

    Raises:
        GuestError: They are not available.
    """
    kernel = provide(AARCH64, qemu=True, jobs=jobs)
    return combinations([kernel], [find_qemu(architecture=AARCH64)], AARCH64)


def main() -> int:
    """Run the matrix alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="only combinations whose line has this text")
    only = parser.parse_args().only
    every = combinations([build_kernel(), build_kernel(OLDER_KERNEL)], [system_qemu(), newer_qemu()])
    every += arm_combinations()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        runs = list(pool.map(run_combination, [each for each in every if only in str(each)]))
    title("matrix")
    for run in runs:
        run.show()
    passed, failed = sum(run.passed for run in runs), sum(run.failed for run in runs)
    print(f"{passed} passed, {failed} failed, {sum(run.skipped.total() for run in runs)} skipped")
    return int(failed > 0 or not passed)


def run_combination(combination: Combination) -> Run:
    """Run the core tests on one machine; one that there cannot be is a skip."""
    if obstacle := combination.obstacle():
        run = Run(combination.job().name)
        run.skipped[obstacle] += 1
        return run
    return run_job(combination.job())


if __name__ == "__main__":
    sys.exit(main())
