"""Runs the tests: what `tests/run` and continuous integration call, in the environment that they have made.

    python -m tests.suite [--all | --conformance] [PATH…] [PYTEST OPTIONS]

Paths choose: those under tests/unit, tests/abi and tests/boot run here, those under tests/guest in a guest. Without,
all of them run, after ruff and mypy; but for tests/guest/stress, which takes minutes, tests/boot, which starts guests
of its own, and tests/guest/core, which runs on the whole matrix: these with --all only. With --conformance the kernel's
own C programs run and our twins of their cases, and nothing else; --all runs them, too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.kernels import CachedKernel, cache_folder, cached_kernels
from pyiommufd.testing.machine import device_arguments
from pyiommufd.testing.qemu import QEMU
from tests import matrix
from tests.claims_machine import CLAIMS_DEVICES
from tests.conformance.run import run_conformance
from tests.runs import AT_A_TIME, Run, check, here, in_guest, title

CLAIMS = "tests/guest/claims"
GUEST_TESTS = {
    "guest tests": ["tests/guest/kernel", "tests/guest/host", "tests/guest/facts"],
    "guest tests, fixtures": ["tests/guest/testing"],
    "guest tests, commands": ["tests/guest/cli", "tests/guest/diagnose"],
}
LONG_GUEST_TESTS = {"guest tests, stress": ["tests/guest/stress"], "guest tests, claims": [CLAIMS]}
CHECKS = (
    ("ruff check", ["ruff", "check", "."]),
    ("ruff format", ["ruff", "format", "--check", "."]),
    ("mypy", ["mypy"]),
)


def main() -> int:
    """Run what the arguments choose; 0 if all of it passed."""
    start = time.monotonic()
    arguments = sys.argv[1:]
    everything, conformance = "--all" in arguments, "--conformance" in arguments
    arguments = [argument for argument in arguments if argument not in ("--all", "--conformance")]
    paths = [argument for argument in arguments if argument.startswith("tests/")]
    options = [argument for argument in arguments if argument not in paths]

    def chosen(folder: str, by_default: bool = True) -> list[str]:
        mine = [path for path in paths if path.startswith(f"tests/{folder}")]
        return mine or ([f"tests/{folder}"] if by_default and not paths else [])

    runs: list[Run] = []
    last_line = ""
    if conformance and not everything:
        runs, last_line = run_conformance(arguments)
        return summary(runs, start, last_line, conformance_alone=True)
    kernels: list[CachedKernel] = []
    qemus: list[QEMU] = []
    whole_matrix = everything and not paths
    if whole_matrix:
        title("kernels and QEMUs")
        try:
            kernels, qemus = matrix.prepare()
        except (GuestError, OSError) as error:
            print(error)
            runs.append(Run("kernels and QEMUs", failed=1))
    runs += [] if arguments else [check(*one) for one in CHECKS]
    if where := chosen("unit"):
        runs.append(here("unit tests", [*where, *options]))
    if where := chosen("abi", everything or bool(cached_kernels(cache_folder()))):
        environment = dict(os.environ)
        if kernels:
            environment["PYIOMMUFD_TEST_KERNELS"] = os.pathsep.join(str(kernel.folder) for kernel in kernels)
        # -rP: what was compared, and left out on purpose, is to be read also where nothing fails.
        runs.append(here("ABI", ["-rP", *where, *options], environment))
    aside = everything and not paths
    long: list[Callable[[], Run]] = []
    if where := chosen("boot", everything):
        long.append(partial(here, "tests that boot guests", [*where, *options], aside=aside))
    if paths:
        where = [*chosen("guest"), *chosen("conformance")]
        for name, mine in (
            ("guest tests", [path for path in where if not path.startswith(CLAIMS)]),
            ("guest tests, claims", [path for path in where if path.startswith(CLAIMS)]),
        ):
            if mine:
                long.append(partial(in_guest, name, [*mine, *options], machine=machine(mine)))
    else:
        # Guests of their own: the tests of the core hold their claims to the end, those of the fixtures claim anew.
        for name, folders in ((LONG_GUEST_TESTS if everything else {}) | GUEST_TESTS).items():
            long.append(partial(in_guest, name, [*folders, *options], aside=aside, machine=machine(folders)))
    with ThreadPoolExecutor(AT_A_TIME if aside else 1) as pool:
        runs += pool.map(lambda run: run(), long)
    if kernels and qemus:
        runs += matrix.run_matrix(matrix.combinations(kernels, qemus))
    if whole_matrix:
        found, last_line = run_conformance()
        runs += found
    return summary(runs, start, last_line)


def machine(paths: list[str]) -> list[str]:
    """The options of the guest that these tests run in: the claims have a machine of their own."""
    if not paths[0].startswith(CLAIMS):
        return []
    return [f"--device={argument}" for argument in device_arguments(CLAIMS_DEVICES) if argument != "-device"]


def summary(runs: list[Run], start: float, last_line: str, *, conformance_alone: bool = False) -> int:
    """Print what came of all runs; 0 if all of it passed."""
    title("summary")
    for run in runs:
        run.show()
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    print(f"in {minutes}:{seconds:02}")
    passed, failed = sum(run.passed for run in runs), sum(run.failed for run in runs)
    total = f"{passed} passed, {failed} failed, {sum(run.skipped.total() for run in runs)} skipped"
    print("\n".join([total, last_line] if conformance_alone else [last_line, total]).strip())
    return int(failed > 0 or not passed)


if __name__ == "__main__":
    sys.exit(main())
