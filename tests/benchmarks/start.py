"""What starting costs: imports, as ratios to that of what they cannot do without, and commands from the prompt.

Imports are measured in the guest with an instruction clock, in processor time; commands on this machine, as medians of
times that pass, and so are only comparable where little else runs. Run as a program, in the guest, this measures.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import in_guest

BASE = "import _cffi_backend, enum"
IMPORTS = {
    "import pyiommufd": 1.3,
    "from pyiommufd import IOMMUFD": 1.3,
    "from pyiommufd import IOMMUFD; IOMMUFD().close()": None,
    "from pyiommufd import IOMMUFD, IOAS, DMABuffer": None,
    "from pyiommufd import IOMMUFD, Device, find_device, plan_claim": None,
}
"""Imports, and what each is to be at most; None: given for comparison. To open an iommufd imports what it makes."""

COMMANDS = {
    "pyiommufd --help": (["-m", "pyiommufd.cli", "--help"], 80),
    "pyiommufd list": (["-m", "pyiommufd.cli", "list"], 100),
}
"""Commands, and how many milliseconds each is to take at most."""

ROUNDS = 15


def environment() -> dict[str, str]:
    """That of this process; compiled files are written, as anywhere: a container may forbid it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(arguments: Sequence[str]) -> tuple[float, float]:
    """Milliseconds that pass, and of processor time, of a Python that is started."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *arguments], env=environment(), stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        passed = time.perf_counter() - start
        if process.returncode not in (0, 3):  # 3: this machine has no devices
            said.seek(0)
            sys.exit(f"{arguments}: {process.returncode}\n{said.read().decode(errors='replace')}")
    return 1000 * passed, 1000 * (usage.ru_utime + usage.ru_stime)


def measure() -> dict[str, float]:
    """The least milliseconds of processor time of each import, Python's own start included."""
    best: dict[str, float] = {}
    for count in range(4):
        for code in ("pass", BASE, *IMPORTS):
            _, busy = run(["-c", code])
            if count:  # the first round compiles, and fills caches
                best[code] = min(best.get(code, busy), busy)
    return best


def figures() -> Iterator[Figure]:
    """Imports, then commands."""
    took = in_guest("start")
    for code, goal in IMPORTS.items():
        yield Figure(code, took[code] / took[BASE], goal, "x cffi and enum")
    found: dict[str, list[float]] = {"": [], **{name: [] for name in COMMANDS}}
    for count in range(ROUNDS + 1):
        for name, arguments in {
            "": ["-c", "pass"],
            **{name: command for name, (command, _) in COMMANDS.items()},
        }.items():
            passed, _ = run(arguments)
            if count:
                found[name].append(passed)
    for name, (_, goal) in COMMANDS.items():
        median = statistics.median(found[name])
        yield Figure(f"{name}, on this machine", median, goal, "ms")
        yield Figure(f"{name}, over Python's own start", median / statistics.median(found[""]), None, "x")


if __name__ == "__main__":
    print(json.dumps(measure()))
