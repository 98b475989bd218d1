"""What `ioas.map(buffer)` and `mapping.unmap()` cost, as ratios to the same loop in C.

Runs in a guest whose clock counts instructions (QEMU's -icount, two instructions a nanosecond), so that the figures
do not depend on what else this machine is doing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pyiommufd.testing.guest.guest import Guest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GOALS = {"no device attached": 5.0, "VT-d device attached": 2.0}


def run(rounds: int) -> dict[str, dict[str, float]]:
    """Virtual nanoseconds a pair, by address space and way of calling."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "loop"
        include = f"-I{ROOT / 'pyiommufd/uapi'}"
        subprocess.run(["gcc", "-O2", include, str(HERE / "loop.c"), "-o", str(program)], check=True)
        with Guest(
            folder=ROOT,
            cpus=1,
            accelerator="tcg",
            qemu_arguments=["-icount", "shift=1,sleep=off"],
            read_only=[folder],
        ) as guest:
            command = ["python", str(HERE / "in_guest.py"), str(program), str(rounds)]
            done = guest.run(command, timeout=300)
    if done.returncode:
        sys.exit(done.stderr.decode())
    result: dict[str, dict[str, float]] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="pairs a measurement (2000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures = run(options.rounds)
    print("one map and unmap of 4 KiB, by the guest's instruction clock")
    for space, ways in figures.items():
        print(f"\n{space}")
        for name, nanoseconds in ways.items():
            goal = f"   goal <= {GOALS[space]}" if name == "pyiommufd" else ""
            print(f"  {name:14} {nanoseconds / 1000:8.2f} µs   {nanoseconds / ways['C']:5.2f} x C{goal}")
    if options.json:
        ratios = {
            space: {name: nanoseconds / ways["C"] for name, nanoseconds in ways.items()}
            for space, ways in figures.items()
        }
        options.json.write_text(json.dumps({"nanoseconds": figures, "ratios": ratios, "goals": GOALS}, indent=1))


if __name__ == "__main__":
    main()
