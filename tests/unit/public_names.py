"""What the public classes offer by name, and the types that they speak of, as mypy sees both.

`python -m tests.unit.public_names` writes the names to `public_names.txt`, which `test_public_names` compares.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mypy.build import BuildResult, build
from mypy.modulefinder import BuildSource
from mypy.nodes import Decorator, FuncBase, OverloadedFuncDef, SymbolNode, TypeInfo, Var
from mypy.options import Options
from mypy.types import CallableType

PACKAGES = ("pyiommufd", "pyiommufd.vmm")
"""The packages whose ``__all__`` is what users import."""

NAMES = Path(__file__).with_suffix(".txt")

# Names that no public class has, or not this one: what they are for is the library's own business.
_INTERNAL = frozenset(
    {
        "IOEventFD.start",
        "IOMMUFD.members",
        "IOMMUFD.reserved_hits",
        "IRQ.close",
        "IRQ.release",
        "Interrupts.close",
        "Interrupts.fileno",
        "close_children",
        "close_in_child",
        "drop",
        "extend",
        "fd",
        "forget",
        "forget_child",
        "hwpts_of",
        "live_fd",
        "lock",
        "mark_closed",
        "mark_forked",
        "release_unmask",
        "remember",
        "remember_child",
        "table",
        "take_fd",
        "users_of",
    }
)

_OURS = re.compile(r"pyiommufd(?:\.\w+)+")
# What a user does not make is made by a method, so what its __init__ takes need not be public.
_UNSAID = ("__init__", "__new__", "__post_init__", "__reduce__", "__match_args__", "__mypy-replace")


@functools.cache
def _checked() -> BuildResult:
    """The packages as mypy has read them, also with the types that an assignment alone gives to an attribute."""
    options = Options()
    options.cache_dir = os.devnull  # the cache of another set of options would be thrown away
    sources = [BuildSource(importlib.import_module(package).__file__, package, None) for package in PACKAGES]
    return build(sources, options)


def exported() -> dict[str, SymbolNode]:
    """What the packages export, by its name there."""
    found = {}
    for package in PACKAGES:
        names = _checked().files[package].names
        for name in importlib.import_module(package).__all__:
            node = names[name].node
            assert node is not None
            found[name] = node
    return found


def is_internal(name: str) -> bool:
    """Whether an attribute, as ``Class.attribute``, is the library's own business."""
    return name in _INTERNAL or name.rpartition(".")[2] in _INTERNAL


def public_names() -> list[str]:
    """Each public attribute of each exported class, as ``Class.attribute``; without those of foreign bases."""
    return sorted(
        {
            f"{public}.{name}"
            for public, node in exported().items()
            for name, _ in _members(node)
            if name.isidentifier() and not name.startswith("_")
        }
    )


def types_spoken_of() -> dict[str, set[str]]:
    """By full name, our own types that exported functions, methods and attributes take or give; each with where."""
    found: dict[str, set[str]] = {}
    for public, node in exported().items():
        for name, member in [("", node), *_members(node)]:
            if (
                name.startswith(_UNSAID)
                or is_internal(f"{public}.{name}")
                or (name.startswith("_") and not name.startswith("__"))
            ):
                continue
            for spoken in _OURS.findall(_annotation(member)):
                found.setdefault(spoken, set()).add(f"{public}.{name}".rstrip("."))
    return found


def _members(node: SymbolNode) -> Iterator[tuple[str, SymbolNode]]:
    """The attributes of a class, from each of its bases that is ours."""
    for base in node.mro if isinstance(node, TypeInfo) else ():
        if _OURS.match(base.fullname):
            yield from ((name, entry.node) for name, entry in base.names.items() if entry.node is not None)


def _annotation(node: SymbolNode) -> str:
    """The type of an attribute, a property with its setter, or a function, spelt out with full names."""
    match node:
        case OverloadedFuncDef():
            return " ".join(_annotation(item) for item in node.items)
        case Decorator():
            return _annotation(node.func)
        case FuncBase(type=CallableType() as function):
            receiver = bool(node.info) and not node.is_static
            return " ".join(map(str, [*function.arg_types[receiver:], function.ret_type]))
        case Var():
            return str(node.type)
    return ""


if __name__ == "__main__":
    NAMES.write_text("".join(f"{name}\n" for name in public_names() if not is_internal(name)))
