"""The floors and rooms of the package, and its imports at run time: none runs up, none in a circle.

``python -m tests.runner.layers`` prints floors and rooms, what each room imports, and what is wrong; its status is 1 if
anything is. An import under ``if TYPE_CHECKING`` is for type checkers alone and does not count. One inside a function
counts. What a package imports when a name of it is first used (`on_demand`) does not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.runner.runs import ROOT

PACKAGE = "pyiommufd"

FLOORS = {
    "ground": "iterables light_typing nearest on_demand version < closing printable < causes < errors",
    "uapi": "uapi",
    "host": """
        host host.decoding host.durable host.programs host.sysfs
        < host.discovery host.namespaces host.running_kernel host.users host.worker
        < host.drivers host.limits
        < host.uses
        < host.checks host.holders host.persistent
        < host.rows
        < host.claims
        < host.mdev
        < host.overview
    """,
    "diagnose": "diagnose",
    "kernel": """
        kernel kernel.handle kernel.kernel_object
        < kernel.waitable
        < kernel.record_queue
        < kernel.memory
        < kernel.interrupts kernel.pagetables kernel.window
        < kernel.virtual
        < kernel.device.features kernel.objects
        < kernel.device
        < kernel.iommufd
    """,
    "vmm": "vmm",
    "testing": """
        testing.errors testing.inside testing.option_names
        < testing.checks testing.drivers testing.mock testing.provision testing.smmuv3
        < testing.guest
        < testing testing.edu testing.machine testing.plugin
    """,
    "cli": "cli",
    "everything": "pyiommufd < __main__",
}
"""The floors, lowest first, and in each its rooms: those before ``<`` are below those behind it.

A room is a folder, or a module that is beside folders. It imports rooms below it: of lower floors, and of its own floor
those on the left.
"""

Graph = Mapping[str, set[str]]
"""Names, and those that each imports."""


def heights() -> dict[str, tuple[int, int]]:
    """How high each room is: its floor, and where it is in it."""
    return {
        room: (floor, step)
        for floor, rooms in enumerate(FLOORS.values())
        for step, together in enumerate(rooms.split("<"))
        for room in together.split()
    }


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The package's modules: their dotted names, of packages too, without ``pyiommufd.``, and their files."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name.removeprefix(f"{PACKAGE}.")] = path
    return found


def imports(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each imports at run time."""
    return {name: set(_imported(ast.parse(path.read_text()), found)) - {name} for name, path in found.items()}


def _imported(node: ast.AST, found: Mapping[str, Path]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            child.body = []
        elif isinstance(child, ast.ImportFrom):
            # `from a import b` imports the module a.b if there is one, and a if not.
            names = [[f"{child.module}.{each.name}", child.module or ""] for each in child.names]
        elif isinstance(child, ast.Import):
            names = [[each.name] for each in child.names]
        for candidates in names:
            yield from [each for each in _ours(candidates) if each in found][:1]
        yield from _imported(child, found)


def _ours(names: list[str]) -> list[str]:
    return [name.removeprefix(f"{PACKAGE}.") for name in names if name.split(".")[0] == PACKAGE]


def room_of(name: str, found: Mapping[str, Path]) -> str:
    """The room of a module."""
    folder = name if found[name].name == "__init__.py" else name.rpartition(".")[0]
    return name if folder in ("", "host", "kernel", "testing") else folder


def between_rooms(graph: Graph, found: Mapping[str, Path]) -> dict[str, set[str]]:
    """The same imports, as imports of rooms by rooms."""
    result: dict[str, set[str]] = {room_of(name, found): set() for name in graph}
    for name, others in graph.items():
        result[room_of(name, found)] |= {room_of(other, found) for other in others} - {room_of(name, found)}
    return result


def circles(graph: Graph) -> list[list[str]]:
    """Those that import each other, directly or through others."""
    reached = {name: _reachable(name, graph) for name in graph}
    found = {frozenset(each for each in reached[name] if name in reached[each]) for name in graph}
    return sorted(sorted(each) for each in found if each)


def _reachable(start: str, graph: Graph) -> set[str]:
    found: set[str] = set()
    rest = list(graph[start])
    while rest:
        name = rest.pop()
        if name not in found:
            found.add(name)
            rest += graph[name]
    return found


def upward(rooms: Graph) -> list[str]:
    """Imports that do not run down, and rooms that are not in `FLOORS`, or no longer there."""
    height = heights()
    wrong = [f"{room}: on no floor" for room in sorted(set(rooms) - set(height))]
    wrong += [f"{room}: on a floor, but not in the package" for room in sorted(set(height) - set(rooms))]
    for room, others in sorted(rooms.items()):
        wrong += [
            f"{room} imports {other}, which is not below it"
            for other in sorted(others)
            if room in height and other in height and height[other] >= height[room]
        ]
    return wrong


def main(root: Path = ROOT) -> int:
    """Print all of it; returns 1 if anything is wrong, 0 otherwise."""
    found = modules(root)
    graph = imports(found)
    rooms = between_rooms(graph, found)
    height = heights()
    for floor, name in reversed(list(enumerate(FLOORS))):
        print(name)
        for room in (room for room in height if height[room][0] == floor and room in rooms):
            print(f"    {room}", *(["->", *sorted(rooms[room])] if rooms[room] else []))
    print(f"{len(found)} modules in {len(rooms)} rooms on {len(FLOORS)} floors")
    wrong = 0
    for title, faults in (
        ("imports between rooms that do not run down", upward(rooms)),
        ("circles of rooms", [" ".join(each) for each in circles(rooms)]),
        ("circles of modules", [" ".join(each) for each in circles(graph)]),
    ):
        print(f"{title}: {len(faults) or 'none'}", *faults, sep="\n    ")
        wrong += len(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
