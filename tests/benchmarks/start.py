"""How long things take to start, as medians: the import, commands, an idle session of pytest, guests.

    python tests/benchmarks/start.py --rounds 11
    python tests/benchmarks/start.py --before ../other-checkout

Each checkout is run by the Python of its own .venv. The checkouts take turns, so that what else the machine does meets
both alike. Beside the seconds that pass, the processor time of this machine is given, which depends less on others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

IDLE = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import pyiommufd": ["-c", "import pyiommufd"],
    "from pyiommufd import IOMMUFD": ["-c", "from pyiommufd import IOMMUFD"],
    "pyiommufd --help": ["-m", "pyiommufd.cli", "--help"],
    "pyiommufd list": ["-m", "pyiommufd.cli", "list"],
    "pytest without the plugin": [*IDLE, "-p", "no:pyiommufd"],
    "pytest, idle": IDLE,
}
GUESTS = {
    "pyiommufd guest -- true": ["-m", "pyiommufd.cli", "guest", "--", "true"],
    "pytest --guest, one test": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--guest", "test_it.py"],
}


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds that a command takes, and of processor time, its children's included."""
    # Compiled files are written, as anywhere: the environment of a container may forbid it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        # No devices, no tests: both are what is measured here.
        if process.returncode not in (0, 3, 5):
            said.seek(0)
            sys.exit(f"{command}: {process.returncode}\n{said.read().decode(errors='replace')}")
    return seconds, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, metavar="N")
    parser.add_argument("--guest-rounds", type=int, default=3, metavar="N")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout, with its .venv")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    checkouts = {"before": options.before.resolve()} if options.before else {}
    checkouts["now"] = ROOT
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "pytest.ini").touch()
        idle = folder / "idle"
        idle.mkdir()
        (folder / "test_it.py").write_text("def test_it(): ...\n")
        for commands, rounds, place in ((COMMANDS, options.rounds, idle), (GUESTS, options.guest_rounds, folder)):
            for count in range(rounds + 1):
                for what, arguments in commands.items():
                    for which, checkout in checkouts.items():
                        times = measured([str(checkout / ".venv/bin/python"), *arguments], place)
                        if count:  # the first round compiles, and fills caches
                            found.setdefault(what, {}).setdefault(which, []).append(times[0])
                            found[what].setdefault(f"{which}, processor", []).append(times[1])
    columns = [f"{which}{kind}" for kind in ("", ", processor") for which in checkouts]
    print(f"{'ms':32}", *(f"{column:>18}" for column in columns))
    for what, by_column in found.items():
        print(f"{what:32}", *(f"{statistics.median(by_column[column]) * 1000:18.1f}" for column in columns))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
