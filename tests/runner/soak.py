"""Runs every point of every sweep, which may take hours; what has passed on a commit is not run again on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Any

from tests.runner.plan import Work
from tests.runner.runs import Run


class Soak:
    """A soak of one commit, which several calls may complete.

    Args:
        file: Where its table is kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self.table: dict[str, dict[str, Any]] = json.loads(file.read_text())
        except (OSError, ValueError):
            self.table = {}  # none yet, or cut off while it was written

    def passed(self, name: str) -> bool:
        """Whether it has passed on this commit."""
        return name in self.table and not self.table[name]["failures"]

    def run(self, works: Iterable[Work], pool: Executor, only: str | None) -> list[Run]:
        """Run what has not passed yet, and print a line for each that ends.

        Args:
            works: All there is.
            pool: What runs it.
            only: Those whose name has this text, whether they have passed or not.
        """
        wanted = [work for work in works if (only in work.name if only else not self.passed(work.name))]
        print(f"{'points':>8} {'tests':>6} {'seconds':>8} {'failures':>8}  name", flush=True)
        for name, row in self.table.items():
            if name not in {work.name for work in wanted}:
                print(_line(name, row, "earlier"), flush=True)
        futures = {pool.submit(work.run): work for work in wanted}
        result: list[Run] = []
        for future in as_completed(futures):
            name, runs = futures[future].name, future.result()
            self._keep(name, runs)
            print(_line(name, self.table[name]), flush=True)
            result += runs
        if not wanted and not only:
            result.append(Run("all, earlier on this commit", passed=sum(row["tests"] for row in self.table.values())))
        return result

    def _keep(self, name: str, runs: Sequence[Run]) -> None:
        self.table[name] = {
            "points": sum(sweep.taken for run in runs for sweep in run.sweeps),
            "tests": sum(run.passed for run in runs),
            "seconds": round(sum(run.seconds for run in runs), 1),
            "failures": [failure for run in runs for failure in run.failures],
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self.table, indent=1) + "\n")
        temporary.replace(self._file)


def _line(name: str, row: dict[str, Any], remark: str = "") -> str:
    figures = f"{row['points']:8} {row['tests']:6} {row['seconds']:8} {len(row['failures']):8}"
    return f"{figures}  {name}{f' ({remark})' if remark else ''}"
