"""What `pytest --guest` costs over plain pytest in the same guest: a session, and each test.

The guest's clock counts instructions (QEMU's -icount), and what is counted is the time that its one CPU is busy: so
those figures do not depend on what else this machine is doing. A virtual second is 500 million instructions, about a
second of an emulated CPU. What the host adds (its own start and collection) is real time, the shortest of several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyiommufd.testing.guest.guest import Guest
from pyiommufd.testing.inside import wire
from pyiommufd.testing.plugin.inner_pytest import InnerPytest

GOALS = {"session, s": 2.0, "test, ms": 10.0}
OPTIONS = ("-q", "-p", "no:cacheprovider")


def busy(guest: Guest) -> float:
    """How long the guest's CPU has been busy, in virtual seconds."""
    user, nice, system, _, _, irq, softirq = map(int, guest.get("/proc/stat").split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def plain(guest: Guest, file: str) -> float:
    """Virtual seconds of a run of pytest as anybody would start it."""
    start = busy(guest)
    done = guest.run([sys.executable, "-m", "pytest", *OPTIONS, file])
    if done.returncode:
        sys.exit((done.stdout + done.stderr).decode())
    return busy(guest) - start


def through_plugin(guest: Guest, file: str, count: int) -> float:
    """Virtual seconds of the same tests run as `pytest --guest` runs them."""
    inner = InnerPytest(guest, [*OPTIONS, "--guest", file], guest.folder, timeout=600)
    tests = [f"{file}::test_it[{number}]" for number in range(count)]
    start = busy(guest)
    finished = sum(message["op"] == "finish" for message in inner.messages([str(guest.folder / file)], tests))
    if finished != count:
        sys.exit(f"{finished} of {count} tests ran: {inner.end}")
    return busy(guest) - start


def host_seconds(folder: Path, file: str, rounds: int) -> float:
    """Seconds that the host's pytest takes to start and to collect."""

    def run() -> float:
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", *OPTIONS, "--guest", "--collect-only", file]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.monotonic() - start

    return min(run() for _ in range(rounds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=200, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    many: int = options.tests
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "pytest.ini").touch()
        for count in (1, many):
            text = f"import pytest\n@pytest.mark.parametrize('n', range({count}))\ndef test_it(n): ...\n"
            (folder / f"test_{count}.py").write_text(text)
            host_seconds(folder, f"test_{count}.py", 1)  # leaves the compiled files for the guest, as any run does
        host = host_seconds(folder, "test_1.py", options.rounds)
        with Guest(
            devices=[],
            folder=folder,
            cpus=1,
            accelerator="tcg",
            qemu_arguments=["-icount", "shift=1,sleep=off"],
            ports=[wire.PORT],
        ) as guest:
            # In turns, and the shortest of each: the first runs fill the guest's caches.
            rounds = [
                (plain(guest, file), through_plugin(guest, file, count))
                for _ in range(options.rounds)
                for count in (1, many)
                for file in [f"test_{count}.py"]
            ]
    one_plain, one = map(min, zip(*rounds[::2], strict=True))
    many_plain, all_of_them = map(min, zip(*rounds[1::2], strict=True))
    per_test = ((all_of_them - one) - (many_plain - one_plain)) / (many - 1) * 1000
    figures = {
        "plain session of one test, virtual s": one_plain,
        "the same through the plugin, virtual s": one,
        "host's start and collection, s": host,
        "session, s": one - one_plain + host,
        "test, ms": per_test,
    }
    for what, value in figures.items():
        goal = f"   (goal: below {GOALS[what]:g})" if what in GOALS else ""
        print(f"{what:42} {value:8.3f}{goal}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
