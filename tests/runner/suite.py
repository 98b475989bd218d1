"""Runs the tests: what `tests/run` and continuous integration call, in the environment that they have made.

    python -m tests.runner.suite [--all | --conformance] [PATH…] [PYTEST OPTIONS]

Paths choose: those under tests/unit, tests/abi and tests/boot run here, those under tests/guest in a guest. Without,
all of them run, after ruff and mypy; but for tests/guest/stress, claims and vmm, which take minutes, tests/boot,
which starts guests of its own, and tests/guest/core, which runs on the whole matrix: these with --all only. With
--conformance the kernel's own C programs run and our twins of their cases, and nothing else; --all runs them, too.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.kernels import CachedKernel, cache_folder, cached_kernels
from pyiommufd.testing.machine import device_arguments
from pyiommufd.testing.qemu import QEMU
from tests.runner import matrix
from tests.runner.claims_machine import CLAIMS_DEVICES
from tests.conformance.run import last_line, run_conformance, run_program
from tests.conformance.upstream import PROGRAMS
from tests.runner.runs import AT_A_TIME, ROOT, Run, check, compile_everything, here, in_guest, title

CLAIMS = "tests/guest/claims"
GUEST_TESTS = {
    "guest tests": ["tests/guest/kernel", "tests/guest/host", "tests/guest/facts"],
    "guest tests, fixtures": ["tests/guest/testing"],
    "guest tests, commands": ["tests/guest/cli", "tests/guest/diagnose"],
}
LONG_GUEST_TESTS = {"guest tests, handing over": ["tests/guest/vmm"]}
LONG_STRESS_TESTS = ("arguments", "rounds", "closing", "model")
"""Those of tests/guest/stress that take minutes, the longest first: each has a guest of its own."""

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
    if conformance and not everything:
        compile_everything()
        runs, line = run_conformance(arguments)
        return summary(runs, start, line, conformance_alone=True)
    chosen = Chosen(arguments, everything)
    if everything and not chosen.paths:
        runs, line = run_everything(chosen)
        return summary(runs, start, line)
    compile_everything()
    runs = run_here(chosen, cached_kernels(cache_folder()) if everything else [])
    if where := chosen.below("boot", by_default=everything):
        runs.append(here("tests that boot guests", [*where, *chosen.options]))
    if not chosen.paths:
        runs += [in_guest(name, [*folders, *chosen.options]) for name, folders in GUEST_TESTS.items()]
    else:
        claims = chosen.below("guest/claims", by_default=False)
        others = [*chosen.below("guest", by_default=False), *chosen.below("conformance", by_default=False)]
        if where := [path for path in others if path not in claims]:
            runs.append(in_guest("guest tests", [*where, *chosen.options]))
        if claims:
            runs.append(in_guest("guest tests, claims", [*claims, *chosen.options], machine=claims_machine()))
    return summary(runs, start)


class Chosen:
    """What the arguments choose.

    Attributes:
        paths: Files and folders; none: all.
        options: For pytest.
        everything: Whether what takes long belongs to all.
    """

    def __init__(self, arguments: list[str], everything: bool) -> None:
        self.paths = [argument for argument in arguments if argument.startswith("tests/")]
        self.options = [argument for argument in arguments if argument not in self.paths]
        self.everything = everything

    def below(self, folder: str, *, by_default: bool = True) -> list[str]:
        """The paths below a folder of the tests; the folder where there are no paths and it is one of the default."""
        mine = [path for path in self.paths if path.startswith(f"tests/{folder}")]
        return mine or ([f"tests/{folder}"] if by_default and not self.paths else [])


def run_here(chosen: Chosen, kernels: list[CachedKernel]) -> list[Run]:
    """The checks and tests that take no guest."""
    runs = [] if chosen.paths or chosen.options else [check(*one) for one in CHECKS]
    if where := chosen.below("unit"):
        runs.append(here("unit tests", [*where, *chosen.options]))
    if where := chosen.below("abi", by_default=chosen.everything or bool(cached_kernels(cache_folder()))):
        environment = dict(os.environ)
        if kernels:
            environment["PYIOMMUFD_TEST_KERNELS"] = os.pathsep.join(str(kernel.folder) for kernel in kernels)
        # -rP: what was compared, and left out on purpose, is to be read also where nothing fails.
        runs.append(here("ABI", ["-rP", *where, *chosen.options], environment))
    return runs


def run_everything(chosen: Chosen) -> tuple[list[Run], str]:
    """All tests there are; guests as many at a time as the machine has processors for.

    Returns:
        The figures, and the line to end with.
    """
    runs: list[Run] = []
    kernels: list[CachedKernel] = []
    qemus: list[QEMU] = []
    title("kernels and QEMUs")
    try:
        kernels, qemus = matrix.prepare()
    except (GuestError, OSError) as error:
        runs.append(Run("kernels and QEMUs", failures=[str(error)]))
    compile_everything()
    runs += run_here(chosen, kernels)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        # What takes longest comes first, and what is short fills the gaps at the end.
        stress = {_noun(file): file for file in _files("tests/guest/stress")}
        long = [
            pool.submit(in_guest, f"stress, {noun}", [stress.pop(noun), *chosen.options], aside=True)
            for noun in LONG_STRESS_TESTS
        ]
        long.append(pool.submit(in_guest, "stress, others", [*stress.values(), *chosen.options], aside=True))
        long += [
            pool.submit(
                in_guest, f"claims, {_noun(file)}", [file, *chosen.options], aside=True, machine=claims_machine()
            )
            for file in _files(CLAIMS)
        ]
        long += [
            pool.submit(here, f"boot, {_noun(file)}", [file, *chosen.options], aside=True)
            for file in _files("tests/boot")
        ]
        programs = [pool.submit(run_program, program, aside=True) for program in PROGRAMS]
        long += [
            pool.submit(in_guest, name, [*folders, *chosen.options], aside=True)
            for name, folders in (LONG_GUEST_TESTS | GUEST_TESTS).items()
        ]
        pairs = matrix.start_matrix(pool, matrix.combinations(kernels, qemus))
        runs += [future.result() for future in long]
        runs.append(matrix.show_matrix([pair.result() for pair in pairs]))
        conformance = [program.result() for program in programs]
    return [*runs, *(run for one in conformance for run in one.runs)], last_line(conformance)


def claims_machine() -> list[str]:
    """The options of the guest that tests/guest/claims runs in."""
    return [f"--device={argument}" for argument in device_arguments(CLAIMS_DEVICES) if argument != "-device"]


def _files(folder: str) -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for file in (ROOT / folder).glob("test_*.py"))


def _noun(file: str) -> str:
    return Path(file).stem.removeprefix("test_")


def summary(runs: list[Run], start: float, line: str = "", *, conformance_alone: bool = False) -> int:
    """Print what came of all runs; 0 if all of it passed."""
    title("summary")
    for run in runs:
        run.show()
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    print(f"in {minutes}:{seconds:02}")
    for run in runs:
        run.show_failures()
    passed, failed = sum(run.passed for run in runs), sum(run.failed for run in runs)
    total = f"{passed} passed, {failed} failed, {sum(run.skipped.total() for run in runs)} skipped"
    print("\n".join([total, line] if conformance_alone else [line, total]).strip())
    return int(failed > 0 or not passed)


if __name__ == "__main__":
    sys.exit(main())
