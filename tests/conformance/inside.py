"""In the guest: the C programs, our twins, and our twins on a library that does nothing.

    python -m tests.conformance.inside NAME FOLDER [PYTEST OPTIONS]

NAME is one of `upstream.PROGRAMS`, FOLDER has the programs. What comes of it goes to the results folder.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from pyiommufd import find_device, plan_claim
from tests.conformance.upstream import PROGRAMS, Program
from tests.guest_pytest import ENVIRONMENT, OPTIONS, PYTEST
from tests.patience import patience

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
_SECONDS = 2400
# Nearly all fail: pytest's own tracebacks would take half of the time, whether they are shown or not.
_BRIEF = ["-q", "-q", "--tb=native", "-r", "N"]


def main() -> int:
    """Run them; that something failed is for the reports to say."""
    name, folder, *options = sys.argv[1:]
    program = next(program for program in PROGRAMS if program.name == name)
    _POOL.write_text(str(program.huge_pages))
    with plan_claim(find_device(program.device)).apply() if program.device else contextlib.nullcontext() as claim:
        _run_all(program, Path(folder), [device.name for device in claim.devices] if claim else [], options)
    return 0


def _run_all(program: Program, folder: Path, devices: list[str], options: list[str]) -> None:
    results = Path(os.environ["PYIOMMUFD_RESULTS"])
    name = program.name
    left_out = [word for variant in program.left_out for word in ("-V", variant)]
    start = time.monotonic()
    for each in program.programs:
        command = [str(folder / each), *left_out, *devices]
        with (results / f"{each}.tap").open("w") as tap:
            done = subprocess.run(
                command, stdout=tap, stdin=subprocess.DEVNULL, timeout=patience(_SECONDS), check=False
            )
        print(f"{each}: the C program ended with status {done.returncode}", flush=True)
    print(f"{name}: the C programs took {time.monotonic() - start:.1f} s", flush=True)

    tests = [program.twins, *options]
    _run([*PYTEST, "-q", f"--junit-xml={results / name}-twins.xml", *tests])
    for since in ("setup", "call"):
        report = f"--junit-xml={results / name}-noop-{since}.xml"
        print(f"{name}: the same on a library whose ioctls do nothing, from the {since} on", flush=True)
        # What they print is a traceback each, as has to be; the report says which of them have none.
        command = ["python", "-m", "tests.conformance.noop", since, *OPTIONS, *_BRIEF, report, *tests]
        _run(command, subprocess.DEVNULL)


def _run(command: list[str], output: int | None = None) -> None:
    environment = {**os.environ, **ENVIRONMENT}
    limit = patience(_SECONDS)
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, env=environment, timeout=limit, check=False)


if __name__ == "__main__":
    sys.exit(main())
