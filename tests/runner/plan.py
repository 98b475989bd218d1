"""Which runs there are: what `tests/run`, `--all` and `--soak` consist of, and the machine of each folder of tests."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.guest.machine import IOMMU_KINDS, architecture_of
from pyiommufd.testing.guest.qemu import QEMU
from pyiommufd.testing.plugin.configuration import GuestConfiguration
from pyiommufd.testing.provision.architecture import AARCH64
from pyiommufd.testing.provision.kernel_build import build_kernel
from pyiommufd.testing.provision.kernels import CachedKernel, cache_folder, cached_kernels
from pyiommufd.testing.provision.parts import provide
from tests.conformance.run import run_program
from tests.conformance.upstream import PROGRAMS
from tests.runner import matrix
from tests.runner.claims_machine import CLAIMS_DEVICES
from tests.runner.runs import ROOT, Job, Run, Sweep, check, run_job

DEFAULT = GuestConfiguration()
CLAIMS = GuestConfiguration(devices=CLAIMS_DEVICES)
SMMUV3 = GuestConfiguration(iommu="smmuv3-nested")

QUICK = ("-m", "not long")
"""What `tests/run` leaves out is marked: it takes more than a few seconds in an emulated guest."""

SOAK_SECONDS = 12 * 3600.0

_CHECKS = (
    ("ruff check", ["ruff", "check", "."]),
    ("ruff format", ["ruff", "format", "--check", "."]),
    ("mypy", ["mypy"]),
)


@dataclass(frozen=True)
class Work:
    """Something to be done beside others.

    Attributes:
        name: What to call it.
        do: Does it.
    """

    name: str
    do: Callable[[], list[Run]]

    def run(self) -> list[Run]:
        """Do it; what cannot be done, such as for want of a kernel, is a failure, and the others go on."""
        try:
            return self.do()
        except Exception as error:
            traceback.print_exc()
            return [Run(self.name, failures=[f"{type(error).__name__}: {error}"])]


def _works(*jobs: Job) -> list[Work]:
    return [Work(job.name, partial(_run, job)) for job in jobs]


def _run(job: Job) -> list[Run]:
    return [run_job(job)]


def _run_on_arm(job: Job) -> list[Run]:
    """Run a job in a guest of that architecture, of parts that are made where they are not in the cache.

    A machine that they cannot be made on, such as one of another distribution, skips it; `Everything` does not.
    """
    try:
        provide(AARCH64, qemu=True, jobs=1)
    except GuestMissingError as error:
        run = Run(job.name)
        run.skipped[str(error)] += 1
        return [run]
    return [run_job(job)]


def checks() -> list[Work]:
    """The checkers."""
    return [Work(name, partial(_check, name, command)) for name, command in _CHECKS]


def _check(name: str, command: list[str]) -> list[Run]:
    return [check(name, command)]


def quick(options: Sequence[str]) -> list[Work]:
    """While working: the checks, the unit tests, and of every room of the guest what does not take long.

    Args:
        options: More for pytest.
    """
    given = (*options, *QUICK)
    rooms = (("core", "stress", "testing", "vmm"), ("cli", "host"), ("diagnose", "kernel"))
    jobs = [
        *(
            Job(f"guest, {', '.join(some)}", tuple(f"tests/guest/{room}" for room in some), DEFAULT, given)
            for some in rooms
        ),
        Job("guest, claims", ("tests/guest/claims",), CLAIMS, given),
        Job("unit", ("tests/unit",), options=tuple(options)),
    ]
    if cached_kernels(cache_folder()):
        jobs.append(Job("ABI", ("tests/abi",), options=tuple(options)))
    smmuv3 = Job("guest, smmuv3", ("tests/guest/smmuv3",), SMMUV3, given)
    return [*_works(*jobs[:2]), *checks(), *_works(*jobs[2:]), Work(smmuv3.name, partial(_run_on_arm, smmuv3))]


def chosen(paths: Sequence[str], options: Sequence[str]) -> list[Work]:
    """The tests below some paths, each on the machine that it is for.

    Args:
        paths: Below tests/.
        options: More for pytest.
    """
    machines: dict[str, list[str]] = {"claims": [], "smmuv3": [], "guest": [], "here": []}
    for path in paths:
        own = next((name for name in ("claims", "smmuv3") if path.startswith(f"tests/guest/{name}")), None)
        guest = path.startswith(("tests/guest", "tests/conformance"))
        machines[own or ("guest" if guest else "here")].append(path)
    given = tuple(options)
    jobs = [
        Job("tests here", tuple(machines["here"]), options=given),
        Job("guest tests", tuple(machines["guest"]), DEFAULT, given),
        Job("guest tests, claims", tuple(machines["claims"]), CLAIMS, given),
    ]
    works = _works(*(job for job in jobs if job.tests))
    smmuv3 = Job("guest tests, smmuv3", tuple(machines["smmuv3"]), SMMUV3, given)
    return [*works, Work(smmuv3.name, partial(_run_on_arm, smmuv3))] if smmuv3.tests else works


class Everything:
    """All tests there are.

    The older kernel, the newer QEMU and the parts of guests with Arm's IOMMU are made beside the first tests where they
    are not in the cache.

    Args:
        pool: What makes them.
        options: More for pytest.
        whole: Every point of every sweep: pytest has more time in each guest, and the files that are nearly all sweeps
            have a guest each.
    """

    def __init__(self, pool: Executor, options: Sequence[str] = (), *, whole: bool = False) -> None:
        self._options = tuple(options)
        self._whole = whole
        self._older: Future[CachedKernel] = pool.submit(matrix.older_kernel)
        self._newer: Future[QEMU] = pool.submit(matrix.newer_qemu)
        # By one compiler, as tests run beside it.
        self._arm: Future[list[matrix.Combination]] = pool.submit(matrix.arm_combinations, jobs=1)

    def works(self) -> Iterator[Work]:
        """All of it: what needs neither the older kernel nor the newer QEMU comes first, roughly the longest first."""
        yield from checks()
        if self._whole:
            yield from self._jobs("stress", _files("tests/guest/stress"), DEFAULT)
            yield from self._jobs("claims", _files("tests/guest/claims"), CLAIMS)
        else:
            # With a guest for each file, a third of the time would be guests and pytest starting.
            yield self._job("stress", ("tests/guest/stress",), DEFAULT)
            yield self._job("claims", ("tests/guest/claims",), CLAIMS)
        yield self._job("vmm", ("tests/guest/vmm",), DEFAULT)
        yield self._job("kernel", ("tests/guest/kernel",), DEFAULT)
        yield self._job("host", ("tests/guest/host",), DEFAULT)
        yield self._job("fixtures", ("tests/guest/testing",), DEFAULT)
        yield self._job("commands", ("tests/guest/cli", "tests/guest/diagnose"), DEFAULT)
        boot = _files("tests/boot")
        late = {file: file for file in boot if _noun(file) in ("causes", "devices", "handover", "pages")}
        yield from self._jobs("boot", [file for file in boot if file not in late], None)
        yield self._job("unit", ("tests/unit",))
        # These wait for what is being made.
        yield from (self._after(work) for work in self._jobs("boot", [*late], None))
        smmuv3 = Job("smmuv3", ("tests/guest/smmuv3",), SMMUV3, self._options)
        yield Work(smmuv3.name, partial(self._on_arm, smmuv3))
        yield Work("kernels and QEMUs", self._made)
        yield from (Work(f"conformance, {each.name}", partial(self._conformance, each.name)) for each in PROGRAMS)
        yield from (Work(f"matrix, {kind}", partial(self._matrix, kind)) for kind in IOMMU_KINDS)
        yield Work("ABI", self._abi)

    def _job(self, name: str, tests: tuple[str, ...], machine: GuestConfiguration | None = None) -> Work:
        seconds = SOAK_SECONDS if self._whole else Job.seconds
        return _works(Job(name, tests, machine, self._options, seconds=seconds))[0]

    def _jobs(self, name: str, files: Sequence[str], machine: GuestConfiguration | None) -> Iterator[Work]:
        for file in files:
            yield self._job(f"{name}, {_noun(file)}", (file,), machine)

    def _after(self, work: Work) -> Work:
        def do() -> list[Run]:
            self._wait()
            return work.do()

        return Work(work.name, do)

    def _wait(self) -> None:
        for made in (self._older, self._newer, self._arm):
            made.exception()

    def _made(self) -> list[Run]:
        every: tuple[Future[Any], ...] = (self._older, self._newer, self._arm)
        failures = [str(error) for made in every if (error := made.exception()) is not None]
        return [Run("kernels and QEMUs", passed=int(not failures), failures=failures)]

    def _on_arm(self, job: Job) -> list[Run]:
        self._arm.result()
        return [run_job(job)]

    def _conformance(self, name: str) -> list[Run]:
        self._wait()
        return run_program(next(each for each in PROGRAMS if each.name == name), self._options)

    def _matrix(self, kind: str) -> list[Run]:
        if architecture_of(kind) is AARCH64:
            combinations = self._arm.result()
        else:
            kernels, qemus = [build_kernel(), self._older.result()], [matrix.system_qemu(), self._newer.result()]
            combinations = matrix.combinations(kernels, qemus)
        every = [one for one in combinations if one.iommu == kind]
        taken = matrix.sampled(every)
        runs = [matrix.run_combination(one) for one in taken]
        runs[0].sweeps.append(Sweep(f"matrix, {every[0].iommu}", len(every), len(taken)))
        return runs

    def _abi(self) -> list[Run]:
        self._wait()
        folders = os.pathsep.join(str(kernel.folder) for kernel in cached_kernels(cache_folder()))
        # -rP: what was compared, and left out on purpose, is to be read also where nothing fails.
        return _run(Job("ABI", ("tests/abi",), None, ("-rP", *self._options), {"PYIOMMUFD_TEST_KERNELS": folders}))


def _files(folder: str) -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for file in (ROOT / folder).glob("test_*.py"))


def _noun(file: str) -> str:
    return Path(file).stem.removeprefix("test_")
