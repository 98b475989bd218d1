"""How autodoc shows docstrings of Google's style: what a property raises too, and no base that is not public."""

from __future__ import annotations

import builtins
import enum
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.typing import get_type_hints, restify, stringify_annotation

PACKAGES = ("pyiommufd", "pyiommufd.vmm", "pyiommufd.testing", "pyiommufd.testing.mock")
"""The packages whose ``__all__`` is what users import."""


def public_classes() -> list[type]:
    """The classes that the packages export."""
    found = (getattr(importlib.import_module(package), name) for package in PACKAGES for name in _exported(package))
    return [one for one in found if inspect.isclass(one)]


def _exported(package: str) -> list[str]:
    return list(importlib.import_module(package).__all__)


def documented_elsewhere() -> str:
    """The bases whose members a class is not shown with: they have entries of their own, here or in Python's."""
    foreign = {*vars(builtins), *enum.__all__}
    return ",".join(sorted(foreign | {one.__name__ for one in public_classes()}))


def _bases(kind: type) -> Iterator[type]:
    """The bases that a reader can look up; in place of another one, its own."""
    for base in kind.__bases__:
        if base.__module__.partition(".")[0] != "pyiommufd" or base in public_classes():
            yield base
        else:
            yield from _bases(base)


def _private_bases(kind: type) -> Iterator[type]:
    """The bases that no reader can look up: what their docstrings say of attributes is said with the class."""
    for base in kind.__bases__:
        if base.__module__.partition(".")[0] == "pyiommufd" and base not in public_classes():
            yield base
            yield from _private_bases(base)


def _attributes(kind: type) -> dict[str, str]:
    """What a class's docstring says of its attributes, by their names: from each name to the next."""
    section = re.search(r"^Attributes:\n((?:(?: .*)?(?:\n|\Z))+)", inspect.getdoc(kind) or "", re.MULTILINE)
    entries = re.split(r"^    (?=\w)", section[1], flags=re.MULTILINE)[1:] if section else []
    return {entry.partition(":")[0]: f"    {entry.rstrip()}" for entry in entries}


def _types(kind: type) -> dict[str, Any]:
    """The types of a class's attributes: as annotated, or as those of the arguments of their names."""
    arguments = get_type_hints(kind.__init__) if inspect.isfunction(kind.__init__) else {}  # type: ignore[misc]
    return arguments | get_type_hints(kind)


def _with_types(lines: list[str], types: dict[str, Any]) -> Iterator[str]:
    """An attribute's type in its head line, as a property's is, in place of a paragraph below it."""
    for line in lines:
        if line.startswith("   :type:"):
            continue
        yield line
        name = line.removeprefix(".. attribute:: ")
        if name != line and name in types:
            yield f"   :type: {stringify_annotation(types[name], 'smart')}"


def _process(app: Sphinx, what: Any, name: str, shown: Any, options: Any, lines: list[str]) -> None:
    if inspect.isclass(shown):
        own = _attributes(shown)
        inherited = {name: text for base in _private_bases(shown) for name, text in _attributes(base).items()}
        if more := [text for name, text in inherited.items() if name not in own]:
            lines += ["", "Attributes:", *"\n".join(more).splitlines()]
    # As a method's: of a property's napoleon takes "The type: what it is" for a type, and reads no sections.
    what = "method" if what in {"attribute", "data", "property"} else what
    lines[:] = GoogleDocstring(lines, app.config, app, what, name, shown, options).lines()
    if inspect.isclass(shown):
        lines[:] = _with_types(lines, _types(shown))
    if inspect.isclass(shown) and (bases := [base for base in _bases(shown) if base is not object]):
        lines[:0] = [f"Bases: {', '.join(restify(base, 'smart') for base in dict.fromkeys(bases))}", ""]


def _skip(app: Sphinx, what: str, name: str, member: object, skip: bool, options: Any) -> bool | None:
    """A field of a named tuple is described in the docstring of its class."""
    del app, what, name, skip, options
    return True if type(member).__name__ == "_tuplegetter" else None


def _sign(
    app: Sphinx, what: str, name: str, shown: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """What a class is made from is of no interest where a method makes it, as of an enumeration or a protocol."""
    del app, name, options, signature
    kinds = (enum.EnumType, type(typing.Protocol))
    made = isinstance(shown, kinds) or re.search(
        r"\b(Made|Returned|Read) (by|from) (an? )?`", inspect.getdoc(shown) or ""
    )
    if what == "class" and made:
        return "", returns
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
