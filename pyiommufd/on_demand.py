"""Public names of a package that are imported when they are first used, so that the package itself costs little."""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # type checkers take this name for true; typing is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def on_demand(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """What a package defines to offer names of its modules without importing these; see PEP 562.

    Args:
        package: Its ``__name__``.
        places: Its modules, named from the package on, and the names that each provides, separated by blanks. A module
            directly in the package is a name of its own.

    Returns:
        Its ``__getattr__`` and its ``__dir__``.
    """
    module_of = {name: f"{package}.{module}" for module, names in places.items() for name in names.split()}
    namespace = vars(sys.modules[package])

    def look_up(name: str) -> object:
        if name in places:
            return importlib.import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = namespace[name] = getattr(importlib.import_module(module_of[name]), name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *module_of, *(module for module in places if "." not in module)})

    return look_up, names
