"""The conformance run: the kernel's own C programs in a guest, and our twins of their cases beside them.

tests/run --conformance
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.kernel_build import build_kernel
from pyiommufd.testing.kernels import CachedKernel, cache_folder, cached_kernels
from pyiommufd.testing.machine import device_arguments
from pyiommufd.testing.newer_qemu import fetch
from tests.conformance.report import Comparison, judge_noop, read_twins, seconds_of
from tests.conformance.upstream import PROGRAMS, Outcome, Program, ProgramError, build, read_tap
from tests.runner.runs import Run, run_command

_SECONDS = 3600


@dataclass
class Conformance:
    """What came of a program and its twins.

    Attributes:
        runs: The figures: of the comparison, and of the twins on a library that does nothing.
        line: The program's part of the last line.
    """

    runs: list[Run]
    line: str


def run_program(program: Program, options: Sequence[str] = (), *, aside: bool = False) -> Conformance:
    """Run a program, and the twins of its cases.

    Args:
        program: Which.
        options: More for the twins' pytest.
        aside: Others run at the same time: what it prints is kept together, until it has ended.
    """
    start = time.monotonic()
    try:
        comparison, runs = _run_program(program, options, aside)
    except (GuestError, OSError, ValueError) as error:
        return Conformance([Run(f"conformance, {program.name}", failures=[str(error)])], f"{program.name} did not run")
    runs[0].seconds = time.monotonic() - start - sum(run.seconds for run in runs)
    return Conformance(runs, comparison.line)


def last_line(found: Iterable[Conformance]) -> str:
    """The line to end with."""
    return f"conformance: {', '.join(one.line for one in found)}"


def run_conformance(options: Sequence[str] = ()) -> tuple[list[Run], str]:
    """Run all programs one after the other, or those chosen.

    Args:
        options: Names of `upstream.PROGRAMS`: these only; and more for pytest.

    Returns:
        The figures, and the line to end with.
    """
    names = [program.name for program in PROGRAMS if program.name in options]
    options = [option for option in options if option not in names]
    found = [run_program(program, options) for program in PROGRAMS if not names or program.name in names]
    return [run for one in found for run in one.runs], last_line(found)


def _kernel() -> CachedKernel:
    """The newest kernel whose source is at hand."""
    return next(iter(cached_kernels(cache_folder())), None) or build_kernel()


def machine_options(program: Program) -> list[str]:
    """The options of ``pyiommufd guest`` for the machine that a program wants."""
    # Each device is "-device" and QEMU's argument for it.
    devices = [f"--device={argument}" for argument in device_arguments(program.devices)[1::2]]
    return [*devices, *program.guest_options, *([f"--qemu={fetch().program}"] if program.newer_qemu else [])]


def _run_program(program: Program, options: Sequence[str], aside: bool) -> tuple[Comparison, list[Run]]:
    kernel = _kernel()
    built = build(program, kernel)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        command = [sys.executable, "-m", "pyiommufd.cli", "guest", f"--kernel={kernel.folder / 'bzImage'}"]
        command += [f"--timeout={_SECONDS}", f"--results={results}", f"--mount={built}", *machine_options(program)]
        command += ["--", "python", "-m", "tests.conformance.inside", program.name, str(built), *options]
        status = run_command(f"conformance, {program.name}", command, aside=aside)
        if status:
            raise ProgramError(f"the guest's command ended with status {status}")
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
    # In one piece: others may print at the same time.
    print("\n".join(["", *comparison.table(), *([program.remark] if program.remark else []), ""]), flush=True)
    runs = [comparison.run(some=bool(options))]
    for since, found, seconds in noops:
        run = judge_noop(program.name, since, found, twins)
        run.seconds = seconds
        runs.append(run)
    print(f"conformance, {program.name}, on Linux {kernel.release}", flush=True)
    return comparison, runs
