"""The table of what the library costs: `python -m tests.benchmarks`, by way of tests/benchmark.

Each part is a module of this folder with a function ``figures()``. A ratio is of two figures of one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import ROOT, in_guest

PARTS = ("mappings", "large", "memory", "registers", "dirty", "waiting", "start", "devices", "claims")
PAGE = ROOT / "docs/performance.md"


def line(figure: Figure, before: float | None) -> str:
    """A line of the table."""
    goal = "" if figure.goal is None else f"<= {figure.goal:g}"
    verdict = "" if figure.goal is None else "yes" if figure.met else "no"
    then = "" if before is None else f"{before:10.2f}"
    return f"{figure.name:72} {figure.ratio:10.2f} {figure.unit:16} {goal:>9} {verdict:4}{then}".rstrip()


def earlier(file: Path | None) -> dict[tuple[str, str], float]:
    """The figures of an earlier run, by name and unit: something may be beside two others."""
    return {} if file is None else {(one["name"], one["unit"]): one["ratio"] for one in json.loads(file.read_text())}


def measured(parts: Iterable[str], before: dict[tuple[str, str], float]) -> list[Figure]:
    """Measure, and print each line as soon as it is known."""
    found = []
    for part in parts:
        for figure in importlib.import_module(f"tests.benchmarks.{part}").figures():
            print(line(figure, before.get((figure.name, figure.unit))), flush=True)
            found.append(figure)
    return found


def setting() -> str:
    """When and on what it was measured."""
    emulator = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    cpus = [
        row.partition(":")[2].strip() for row in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in row
    ]
    kernel = in_guest("kernel")
    return (
        f"Measured on {datetime.date.today()}: Linux {kernel} in {emulator.splitlines()[0]}; CPython "
        f"{platform.python_version()}; {os.cpu_count()} CPUs, {cpus[0] if cpus else 'an unknown CPU'}, without KVM."
    )


def write_page(figures: Iterable[Figure]) -> None:
    """Write the table of docs/performance.md."""
    rows = ["| | figure | | goal |", "|---|---:|---|---|"]
    for one in figures:
        goal = "" if one.goal is None else f"≤ {one.goal:g}{'' if one.met else ': **missed**'}"
        rows.append(f"| {one.name} | {one.ratio:.2f} | {one.unit} | {goal} |")
    before, begin, rest = PAGE.read_text().partition("<!-- the table: written by tests/benchmark --docs -->\n")
    end = "<!-- the table: end -->\n"
    PAGE.write_text("\n".join([before + begin + setting(), "", *rows, end + rest.partition(end)[2]]))


def main() -> int:
    """Measure and print. The exit status: 1 if a goal was missed."""
    parser = argparse.ArgumentParser(
        prog="tests/benchmark",
        description="What the library costs, beside C and others. Exit status 1: a goal was missed.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there: name, ratio, goal, unit")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="show those of an earlier run (--json) beside them"
    )
    parser.add_argument("--docs", action="store_true", help="write the table of docs/performance.md, of all parts")
    options = parser.parse_args()
    if options.docs and options.parts:
        parser.error("--docs writes the whole table, so it takes all parts: leave PART out")
    print(f"{'':72} {'figure':>10} {'':16} {'goal':>9} {'met':4}{'before' if options.against else '':>10}".rstrip())
    figures = measured(options.parts or PARTS, earlier(options.against))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(one) for one in figures], indent=1) + "\n")
    if options.docs:
        write_page(figures)
    return int(not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
