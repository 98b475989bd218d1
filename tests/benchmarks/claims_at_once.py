"""What it costs that many claim at once: twenty commands, each for a device of its own, against one after the other.

python tests/benchmarks/claims_at_once.py [--devices N]     in a guest of its own; prints a ratio for claim, and release
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable

from pyiommufd import list_devices
from pyiommufd.testing import Guest, RawDevice
from pyiommufd.testing.drivers import edu

GOAL = 1.5
MOST = 24
"""The slots of the root bus that are free."""


def start(command: str, device: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyiommufd.cli", command, device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.wait():
            sys.exit("a command has failed")


def measure(names: list[str]) -> None:
    """Each command one after the other, and at once."""
    alone: dict[str, float] = {}
    for command in ("claim", "release"):
        begin = time.monotonic()
        for name in names:
            end([start(command, name)])
        alone[command] = time.monotonic() - begin
    for command, before in alone.items():
        begin = time.monotonic()
        end([start(command, name) for name in names])
        together = time.monotonic() - begin
        print(f"{command}: {before:.1f} s one after the other, {together:.1f} s at once", end="", flush=True)
        print(f": {together / before:.2f} times (goal: {GOAL})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=20, metavar="N", choices=range(2, MOST + 1))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        measure([device.name for device in list_devices("pci") if device.device_id == edu.DEVICE_ID])
        return
    devices = [RawDevice(f"edu,addr={slot:#x}") for slot in range(3, 3 + arguments.devices)]
    with Guest(devices=devices) as guest:
        done = guest.run(
            [sys.executable, __file__, "--inside"], stdout=sys.stdout.buffer.write, stderr=sys.stderr.buffer.write
        )
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
