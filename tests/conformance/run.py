"""The conformance run: the kernel's own C programs in a guest, and our twins of their cases beside them.

tests/run --conformance
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.provision.kernel_build import build_kernel
from pyiommufd.testing.provision.kernels import CachedKernel, cache_folder, cached_kernels
from pyiommufd.testing.provision.newer_qemu import fetch
from tests.conformance.report import Comparison, judge_noop, read_twins, seconds_of
from tests.conformance.upstream import PROGRAMS, Outcome, Program, ProgramError, build, read_tap
from tests.patience import patience
from tests.runner.runs import ROOT, Run, Unsteady, title

_SECONDS = 3600


def run_program(program: Program, options: Sequence[str] = ()) -> list[Run]:
    """Run a program and the twins of its cases; if something fails, once more in a fresh guest.

    Args:
        program: Which.
        options: More for the twins' pytest.

    Returns:
        The figures: of the comparison, with its part of the last line, and of the twins on a library that does nothing.
    """
    runs = _attempt(program, options)
    failures = {(run.name, failure) for run in runs for failure in run.failures}
    if not failures:
        return runs
    again = _attempt(program, options)
    still = {(run.name, failure.partition(": ")[0]) for run in again for failure in run.failures}
    for name, failure in sorted(failures):
        if (name, failure.partition(": ")[0]) not in still:
            again[0].unsteady.append(Unsteady(name, failure.partition(": ")[0], failure, ""))
    return again


def _attempt(program: Program, options: Sequence[str]) -> list[Run]:
    start = time.monotonic()
    try:
        runs = _run_program(program, options)
    except (GuestError, OSError, ValueError) as error:
        runs = [Run(f"conformance, {program.name}", failures=[str(error)], remark=f"{program.name} did not run")]
    runs[0].seconds = time.monotonic() - start - sum(run.seconds for run in runs)
    return runs


def run_conformance(options: Sequence[str] = ()) -> list[Run]:
    """Run all programs one after the other, or those chosen.

    Args:
        options: Names of `upstream.PROGRAMS`: these only; and more for pytest.
    """
    names = [program.name for program in PROGRAMS if program.name in options]
    options = [option for option in options if option not in names]
    chosen = [program for program in PROGRAMS if not names or program.name in names]
    return [run for program in chosen for run in run_program(program, options)]


def _kernel() -> CachedKernel:
    """The newest kernel whose source is at hand."""
    return next(iter(cached_kernels(cache_folder())), None) or build_kernel()


def _run_program(program: Program, options: Sequence[str]) -> list[Run]:
    kernel = _kernel()
    built = build(program, kernel)
    machine = program.machine(str(kernel.folder / "bzImage"), str(fetch().program) if program.newer_qemu else None)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        output = bytearray()
        command = ["python", "-m", "tests.conformance.inside", program.name, str(built), *options]
        with machine.guest(folder=ROOT, results=results, read_only=[built], boot_timeout=patience(30)) as guest:
            done = guest.run(command, stdout=output.extend, stderr=output.extend, timeout=patience(_SECONDS))
        title(f"conformance, {program.name}\n{output.decode(errors='replace')}")
        if done.returncode:
            raise ProgramError(f"the guest's command ended with status {done.returncode}")
        outcomes: dict[str, Outcome] = {}
        for name in program.programs:
            outcomes |= read_tap((results / f"{name}.tap").read_text(errors="replace"))
        twins = read_twins(results / f"{program.name}-twins.xml")
        noops = [
            (since, read_twins(report), seconds_of(report))
            for since in ("setup", "call")
            for report in (results / f"{program.name}-noop-{since}.xml",)
        ]
    comparison = Comparison(program.name, outcomes, twins)
    # In one print call, since other threads may print at the same time.
    print("\n".join(["", *comparison.table(), *([program.remark] if program.remark else []), ""]), flush=True)
    runs = [comparison.run(some=bool(options))]
    runs[0].remark = comparison.line
    for since, found, seconds in noops:
        run = judge_noop(program.name, since, found, twins)
        run.seconds = seconds
        runs.append(run)
    print(f"conformance, {program.name}, on Linux {kernel.release}", flush=True)
    return runs
