"""What `list` costs on a large machine, beside a bare enumeration of the same attributes by pyudev.

python tests/benchmarks/list_devices.py [--json FILE]     takes umockdev-run (Debian: umockdev)

Times are the least of several rounds, taken inside one process, both sides on umockdev's folders in place of /sys.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SIZES = (1024, 2048, 4096)
ROUNDS = 3
HERE = Path(__file__).resolve().parent


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
        found.append((device.sys_name, device.subsystem, path, device.driver, links, nodes, values))
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


WAYS: dict[str, Callable[[], int]] = {"pyudev, bare": bare, "list_devices": library, "pyiommufd list": command}


def measure(functions: int) -> dict[str, float]:
    """Seconds for each way on a machine of that size; the rounds interleaved."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            start = time.perf_counter()
            count = way()
            seconds = time.perf_counter() - start
            if count != functions:
                raise SystemExit(f"{name} found {count} functions of {functions}")
            best[name] = min(best.get(name, seconds), seconds)
    best["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return best


def main() -> int:
    """Measure every size, and print the table; 0 if the figures are as promised."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.inside)))
        return 0
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            machine = Path(folder) / f"{size}.umockdev"
            maker = [sys.executable, str(HERE / "machine.py"), str(size)]
            made = subprocess.run(maker, capture_output=True, check=True)
            machine.write_bytes(made.stdout)
            inner = [sys.executable, __file__, "--inside", str(size)]
            done = subprocess.run(
                ["umockdev-run", "--device", str(machine), "--", *inner], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(done.stderr + done.stdout)
            results[size] = json.loads(done.stdout)
    print(f"{'functions':>9} {'bare':>9} {'list_devices':>18} {'list':>18} {'peak':>9}")
    for size, row in results.items():
        bare_time, one, whole = row["pyudev, bare"], row["list_devices"], row["pyiommufd list"]
        ratios = f"{one:>8.3f}s ({one / bare_time:.2f}x) {whole:>8.3f}s ({whole / bare_time:.2f}x)"
        print(f"{size:>9} {bare_time:>8.3f}s {ratios} {row['peak MiB']:>5.0f} MiB")
    least, most = results[SIZES[0]], results[SIZES[-1]]
    growth = most["pyiommufd list"] / least["pyiommufd list"] / (SIZES[-1] / SIZES[0])
    ratio = most["pyiommufd list"] / most["pyudev, bare"]
    print(f"list, {SIZES[-1]} functions: {ratio:.2f} times bare pyudev; growth {growth:.2f} of linear")
    if options.json:
        options.json.write_text(json.dumps(results))
    return int(ratio > 1.3 or growth > 1.3 or most["peak MiB"] > 150)


if __name__ == "__main__":
    sys.exit(main())
