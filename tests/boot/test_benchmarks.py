"""The benchmarks that measure in a guest run; what they measure is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.measuring import ROOT


def test_figures_of_the_hot_paths(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.benchmarks", "mappings", "registers", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a goal was missed
    figures = {one["name"]: one for one in json.loads(file.read_text())}
    assert {"map, unmap of 4 KiB, VT-d attached: pyiommufd", "read32 of a mapped register"} <= set(figures)
    assert all(one["ratio"] > 0 and set(one) == {"name", "ratio", "goal", "unit"} for one in figures.values())
    assert all(name in done.stdout for name in figures)
