"""What `list_devices` costs on machines of different sizes, beside an enumeration of the same attributes by pyudev.

`figures` takes umockdev-run (Debian: umockdev), which puts folders of a machine of machine.py in place of /sys. Run as
a program, there, this measures: devices FUNCTIONS. The two take turns; of processor time the least counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.figure import Figure
from tests.benchmarks.machine import description
from tests.benchmarks.measuring import ROOT

SIZES = (64, 256, 1024, 4096)


def bare() -> int:
    """As somebody would write it who has pyudev and no library: every attribute that a `HostDevice` has."""
    import pyudev

    found = []
    for device in pyudev.Context().list_devices(subsystem="pci"):
        attributes, path = device.attributes, device.sys_path
        links: list[str | None] = []
        for name in ("iommu_group", "iommu"):
            try:
                links.append(os.path.basename(os.readlink(f"{path}/{name}")))  # noqa: PTH119, PTH115
            except OSError:
                links.append(None)
        try:
            nodes = os.listdir(f"{path}/vfio-dev")  # noqa: PTH208
        except OSError:
            nodes = []
        numbers = [attributes.get(name) for name in ("vendor", "device", "class", "numa_node")]
        values = [None if text is None else int(text, 0) for text in numbers]
        is_bridge = os.path.exists(f"{path}/secondary_bus_number")  # noqa: PTH110
        found.append((device.sys_name, device.subsystem, path, device.driver, links, nodes, values, is_bridge))
    found.sort()
    return len(found)


def library() -> int:
    """list_devices."""
    from pyiommufd import list_devices

    return len(list_devices("pci"))


def command() -> int:
    """The command: all buses, how each device stands, its name, and the table."""
    from pyiommufd.cli.group import cli

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        cli.main(["list"], standalone_mode=False)
    return len(output.getvalue().splitlines()) - 1


WAYS: dict[str, Callable[[], int]] = {"pyudev": bare, "list_devices": library, "pyiommufd list": command}


def measure(functions: int) -> dict[str, float]:
    """Seconds of processor time for each way on a machine of that size."""
    best: dict[str, float] = {}
    for _ in range(max(5, 4096 // functions)):
        for name, way in WAYS.items():
            start = time.process_time()
            count = way()
            seconds = time.process_time() - start
            if count != functions:
                raise SystemExit(f"{name} found {count} functions of {functions}")
            best[name] = min(best.get(name, seconds), seconds)
    return best


def figures() -> Iterator[Figure]:
    """For each size, and how the time grows with it."""
    if shutil.which("umockdev-run") is None:
        print("devices: takes umockdev-run (Debian: umockdev)", file=sys.stderr)
        return
    took: dict[int, float] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            machine = Path(folder) / "machine.umockdev"
            machine.write_text("\n".join(description(size)) + "\n")
            measuring = [sys.executable, "-m", "tests.benchmarks.devices", str(size)]
            ways = ["umockdev-run", "--device", str(machine), "--", *measuring]
            done = subprocess.run(ways, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr + done.stdout)
        seconds = json.loads(done.stdout)
        took[size] = seconds["list_devices"] / size
        yield Figure(f"list_devices, {size} functions", seconds["list_devices"] / seconds["pyudev"], 1.0, "x pyudev")
    ratio = seconds["pyiommufd list"] / seconds["pyudev"]
    yield Figure(f"pyiommufd list, {SIZES[-1]} functions, started", ratio, None, "x pyudev")
    growth = took[SIZES[-1]] / took[SIZES[0]]
    yield Figure(f"list_devices, growth from {SIZES[0]} to {SIZES[-1]} functions", growth, 1.3, "x linear")


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
