"""What the tests of the pytest plugin share: small projects, and runs of pytest on them in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A test as the junit report has it: outcomes with their messages and texts, captured output, properties."""

    outcomes: list[tuple[str, str, str]]
    output: dict[str, str]
    properties: dict[str, str]


@dataclass
class Project:
    """A folder with tests in it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable

    def write(self, **files: str) -> None:
        """Write files: the key is the name, in which `__` stands for the dot before the suffix."""
        for name, text in files.items():
            path = self.folder / name.replace("__", ".")
            path.write_text(textwrap.dedent(text))

    def command(self, *arguments: str) -> list[str]:
        return [self.python, "-m", "pytest", *arguments]

    def environ(self) -> dict[str, str]:
        outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return outer | {"COLUMNS": "200"} | self.environment

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run pytest there, writing `report.xml` beside the tests."""
        return subprocess.run(
            self.command(f"--junit-xml={self.folder}/report.xml", *arguments),
            cwd=self.folder,
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def cases(self) -> dict[str, Case]:
        """What the last run's junit report says of each test, in the order of the run."""
        return {f"{node.get('classname')}.{node.get('name')}": _case(node) for node in self._nodes()}

    def _nodes(self) -> Iterator[ElementTree.Element]:
        return ElementTree.parse(self.folder / "report.xml").iter("testcase")  # noqa: S314 - our own pytest wrote it


def _case(node: ElementTree.Element) -> Case:
    kinds = ("failure", "error", "skipped")
    return Case(
        outcomes=[(child.tag, child.get("message", ""), child.text or "") for child in node if child.tag in kinds],
        output={child.tag: child.text or "" for child in node if child.tag.startswith("system-")},
        properties={p.get("name", ""): p.get("value", "") for p in node.iter("property")},
    )


def outcome(case: Case) -> str:
    """One word: passed, or the kinds of what else was reported."""
    return "+".join(kind for kind, _, _ in case.outcomes) or "passed"
