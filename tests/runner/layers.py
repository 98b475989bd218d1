"""Which module imports which at run time: the arrows between rooms, those that point up, and circles.

``python -m tests.runner.layers`` prints them. An import under ``if TYPE_CHECKING`` is for type checkers alone and does not
count; one within a function does, since the code needs the other module all the same.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.runner.runs import ROOT

PACKAGE = "pyiommufd"
FLOORS = (
    ("errors", "printable", "_uapi"),
    ("uapi",),
    ("host",),
    ("diagnose",),
    ("kernel",),
    ("vmm",),
    ("testing",),
    ("cli",),
)
"""The packages, lowest first. One imports those below it, and none above."""

Graph = Mapping[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The package's modules: their dotted names below ``pyiommufd``, and their files."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each imports at run time."""
    return {
        name: {each for each in _imported(ast.parse(path.read_text()), found) if each != name and each in found}
        for name, path in found.items()
    }


def _imported(node: ast.AST, found: Mapping[str, Path]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == PACKAGE:
            base = (child.module or "").removeprefix(PACKAGE).removeprefix(".")
            for each in child.names:
                inner = f"{base}.{each.name}".removeprefix(".")
                yield inner if inner in found else base
        elif isinstance(child, ast.Import):
            yield from (
                each.name.removeprefix(f"{PACKAGE}.") for each in child.names if each.name.startswith(f"{PACKAGE}.")
            )
        yield from _imported(child, found)


def room(name: str, found: Mapping[str, Path]) -> str:
    """The folder that a module is in; what lies beside folders is a room of its own."""
    folder = name if found[name].name == "__init__.py" else name.rpartition(".")[0]
    return folder if folder not in ("", "host", "kernel", "testing") else name


def circles(graph: Graph) -> list[list[str]]:
    """The circles of a graph: sets of which each reaches each other."""
    reached = {name: _reachable(name, graph) for name in graph}
    found = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in graph if name in reached[name]
    }
    return sorted(sorted(each) for each in found)


def _reachable(start: str, graph: Graph) -> set[str]:
    found: set[str] = set()
    rest = list(graph[start])
    while rest:
        name = rest.pop()
        if name not in found:
            found.add(name)
            rest += graph[name]
    return found


def rooms(graph: Graph, found: Mapping[str, Path]) -> dict[str, set[str]]:
    """The arrows between rooms."""
    result: dict[str, set[str]] = {room(name, found): set() for name in graph}
    for name, others in graph.items():
        result[room(name, found)] |= {room(other, found) for other in others} - {room(name, found)}
    return result


if __name__ == "__main__":
    found = modules(Path(sys.argv[1]) if sys.argv[1:] else ROOT)
    graph = imports(found)
    print("module circles:")
    for each in circles(graph):
        print("  ", each)
    r = rooms(graph, found)
    print("room circles:")
    for each in circles(r):
        print("  ", each)
    for name in sorted(r):
        print(name or "(package)", "->", *sorted(r[name]))
