"""What was unsteady in the last runs of all tests, kept in the cache with what was printed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.runner.runs import Unsteady

RUNS = 10
"""A test that is unsteady twice in so many runs is a defect."""


class History:
    """The last runs.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "runs.json"

    def runs(self) -> list[dict[str, Any]]:
        """The last runs, the oldest first: ``commit``, ``seed`` and the names of what was ``unsteady``."""
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return []  # none yet, or cut off while it was written
        return found if isinstance(found, list) else []

    def add(self, commit: str, seed: str, unsteady: Sequence[Unsteady]) -> list[str]:
        """Keep a run, and what it printed of what was unsteady.

        Args:
            commit: What was tested.
            seed: Of its sample.
            unsteady: What failed and then passed.

        Returns:
            A line for each of those, with how often it was so.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        names = sorted({each.test for each in unsteady})
        runs = [*self.runs(), {"commit": commit, "seed": seed, "unsteady": names}][-RUNS:]
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(runs, indent=1) + "\n")
        temporary.replace(self._file)
        lines = []
        for number, each in enumerate(unsteady, 1):
            slug = re.sub(r"[^\w.-]+", "-", each.test.rpartition("/")[2])[:100]
            log = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{number}-{slug}.log"
            log.write_text(f"commit {commit}, seed {seed}\n{each.run}: {each.test}\n{each.reason}\n\n{each.log}\n")
            times = sum(each.test in run["unsteady"] for run in runs)
            verdict = f": in {times} of the last {len(runs)} runs, a defect" if times > 1 else ""
            lines.append(f"UNSTEADY, {each.run}: {each.test}{verdict}; failed, then passed alone; see {log}")
            lines.append(f"    it failed by: {' '.join(each.reason.split())[:300]}")
        return lines
