"""What a look at a large host costs before a claim: 4,096 functions, and 2,000 processes, half of these in containers.

The functions are umockdev's (Debian: umockdev), the processes are real ones. `figures` makes both and measures, each
in a process of its own: claims WAY ROUNDS. That one has umockdev's folders in place of /sys, and not the library that
leads each open there, which takes three system calls for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyiommufd import find_device, plan_claim
from pyiommufd.host import sysfs
from pyiommufd.host.holders import holders
from tests.benchmarks.figure import Figure
from tests.benchmarks.machine import PER_BUS, description
from tests.benchmarks.measuring import ROOT, compiled

FUNCTIONS = 4096
PROCESSES = 2000
ALIASES = 20_000
"""The lines of a distribution's modules.alias, by which the driver of a device is chosen."""

DEVICE = "0000:21:00.5"
"""One of a group of four, of which two are on a host driver, and one on vfio-pci."""
EACH_BUS = tuple(f"0000:{bus + 1:02x}:00.5" for bus in range(FUNCTIONS // PER_BUS))
"""One on each bus, all in groups of their own."""


def plan() -> None:
    """The plan of a claim of one device."""
    assert len(plan_claim(DEVICE).moves) == 3


def plan_many() -> None:
    """Of many."""
    assert len(plan_claim(EACH_BUS).groups) == len(EACH_BUS)


def look_for_holders() -> None:
    """The processes that have a device open."""
    assert not holders(find_device(DEVICE))


WAYS: dict[str, Callable[[], None]] = {
    "plan_claim": plan,
    f"plan_claim of {len(EACH_BUS)} groups": plan_many,
    "holders": look_for_holders,
}
GOALS = {"plan_claim": 1.0, "holders": 0.3}
ROUNDS = 5


def figures() -> Iterator[Figure]:
    """Seconds, the least of several rounds; and how many system calls that is, where there is strace."""
    where = f"{FUNCTIONS} functions, {PROCESSES} processes"
    with tempfile.TemporaryDirectory() as folder, _processes(Path(folder)):
        machine = Path(folder) / "machine.umockdev"
        machine.write_text("\n".join(description(FUNCTIONS)))
        command = ["umockdev-run", "--device", str(machine), "--", sys.executable, "-m", "tests.benchmarks.claims"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            sys.exit(done.stderr + done.stdout)
    for name, (seconds, calls) in json.loads(done.stdout).items():
        yield Figure(f"{name}, {where}", seconds, GOALS.get(name), "s")
        if calls is not None:
            yield Figure(f"{name}, {where}: system calls", calls / 1000, None, "thousand")


@contextlib.contextmanager
def _processes(folder: Path) -> Iterator[None]:
    program = compiled("processes.c", folder)
    with subprocess.Popen([program, str(PROCESSES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            sys.exit("the processes have not started")
        yield


def measure() -> dict[str, tuple[float, int | None]]:
    """Of each way seconds and system calls; in umockdev's place."""
    _complete(Path(os.environ["UMOCKDEV_DIR"]) / "sys")
    found = {}
    for name in WAYS:
        calls = _system_calls(name, 2) - _system_calls(name, 1) if shutil.which("strace") else None
        found[name] = (json.loads(_run(name, ROUNDS)), calls)
    return found


def _complete(sys_folder: Path) -> None:
    """What umockdev's description does not have: groups, modules' aliases, and a driver that is there."""
    for link in (sys_folder / "bus/pci/devices").iterdir():
        path = link.resolve()
        group = sys_folder / "kernel/iommu_groups" / (path / "iommu_group").readlink().name
        (group / "devices").mkdir(parents=True, exist_ok=True)
        (group / "devices" / path.name).symlink_to(path)
        (path / "modalias").write_text("pci:v00008086d000010EDsv00008086sd00000000bc02sc00i00\n")
        (group / "type").write_text("DMA\n")
        (group / "reserved_regions").write_text("0x00000000fee00000 0x00000000feefffff msi\n")
    (sys_folder / "bus/pci/drivers/vfio-pci").mkdir(parents=True, exist_ok=True)


def _run(name: str, rounds: int, *before: str) -> str:
    command = [*before, sys.executable, "-m", "tests.benchmarks.claims", name, str(rounds)]
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def _system_calls(name: str, rounds: int) -> int:
    """How many a process makes that does it so many times."""
    with tempfile.NamedTemporaryFile("r") as file:
        _run(name, rounds, "strace", "--follow-forks", "--summary-only", "-o", file.name)
        (total,) = (line for line in file if line.endswith("total\n"))
        return int(total.split()[3])


def once(name: str, rounds: int) -> float:
    """The seconds of the best round."""
    sysfs.SYS = Path(os.environ["UMOCKDEV_DIR"]) / "sys"
    with tempfile.TemporaryDirectory() as folder:
        _add_aliases(Path(folder))
        best = float("inf")
        for _ in range(rounds):
            start = time.perf_counter()
            WAYS[name]()
            best = min(best, time.perf_counter() - start)
    return best


def _add_aliases(folder: Path) -> None:
    """Put a modules.alias of usual length in place of this machine's, whose kernel may have no modules."""
    file = folder / os.uname().release / "modules.alias"
    file.parent.mkdir()
    lines = [f"alias pci:v{number:08X}d*sv*sd*bc*sc*i* some_driver" for number in range(ALIASES)]
    file.write_text("\n".join([*lines, "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci", ""]))
    sysfs.MODULES = folder


if __name__ == "__main__":
    print(json.dumps(measure() if len(sys.argv) == 1 else once(sys.argv[1], int(sys.argv[2]))))
