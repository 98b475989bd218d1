"""Public names in the documentation: each has one place, under the name that users import it by.

The types that autodoc finds have the names of the modules that define them, ``pyiommufd.kernel.memory.ioas.IOAS``, and
docstrings name things as one speaks of them, `IOAS.map`. Both are found here, also where a page of another module names
them. What is meant has to be one thing: where two classes have a method of that name, the docstring names the class.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import commands
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

PACKAGE = "pyiommufd"
_LIKE_A_NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?")


def _modules() -> Iterator[str]:
    package = importlib.import_module(PACKAGE)
    for found in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if not found.name.endswith(".__main__"):
            yield found.name


def import_types(app: Sphinx) -> None:
    """Carry out the imports under ``if TYPE_CHECKING``, with which no module runs in a circle once all are imported.

    Without them autodoc could not say which class a name in a signature is.
    """
    del app
    for module in [importlib.import_module(name) for name in _modules()]:
        file = Path(module.__file__ or "")
        for node in ast.parse(file.read_text()).body if file.suffix == ".py" else ():
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                imports = ast.Module([one for one in node.body if isinstance(one, ast.Import | ast.ImportFrom)], [])
                exec(compile(imports, str(file), "exec"), module.__dict__)  # noqa: S102 - our own imports


@cache
def _object(name: str) -> Any:
    """What has a full name: a class or function of a module, or an attribute of it."""
    module, attributes = name, []
    while module not in sys.modules:
        module, _, attribute = module.rpartition(".")
        if not module:
            return None
        attributes.append(attribute)
    found: Any = sys.modules[module]
    for attribute in reversed(attributes):
        found = inspect.getattr_static(found, attribute, None)
    return found


def _full_names(name: str) -> Iterator[str]:
    """A full name as it is, and those under which the classes have it that a class or its attribute comes from."""
    yield name
    owner, _, attribute = name.rpartition(".")
    for prefix, rest in ((name, ""), (owner, f".{attribute}")):
        found = _object(prefix)
        for base in inspect.getmro(found) if inspect.isclass(found) else ():
            yield f"{base.__module__}.{base.__qualname__}{rest}"


class _Names:
    """The names that the pages of the reference describe, under the names that users import them by."""

    def __init__(self, objects: Mapping[str, ObjectEntry]) -> None:
        self.described = {name: entry for name, entry in objects.items() if not entry.aliased}
        self._by_definition = {}
        self._by_end: dict[str, list[str]] = {}
        for name in self.described:
            found = _object(name)
            if inspect.isclass(found) or inspect.isfunction(found):
                self._by_definition[f"{found.__module__}.{found.__qualname__}"] = name
            # As one speaks of it: IOAS, IOAS.map, vmm.Handover.
            parts = name.split(".")
            for first in range(1, len(parts)):
                self._by_end.setdefault(".".join(parts[first:]), []).append(name)

    def find(self, target: str, module: str | None = None, owner: str | None = None) -> str | None:
        """The described name that is meant on a page about a module and a class; None: there is none, or several."""
        for context in ((f"{module}.{owner}.", f"{module}.") if owner else (f"{module}.",) if module else ()) + ("",):
            for name in _full_names(context + target):
                if described := self._described(name):
                    return described
        found = self._by_end.get(target, [])
        return found[0] if len(found) == 1 else None

    def _described(self, full: str) -> str | None:
        """By where it is defined: as a whole, or its class and then the attribute."""
        owner, _, attribute = full.rpartition(".")
        names = (full, self._by_definition.get(full, ""), f"{self._by_definition.get(owner)}.{attribute}")
        return next((name for name in names if name in self.described), None)


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: nodes.Node) -> nodes.Node | None:
    if node.get("refdomain") != "py":
        return None
    names = _names(env)
    name = names.find(node["reftarget"], node.get("py:module"), node.get("py:class"))
    if name is None:
        return None
    entry = names.described[name]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [contents], name)


@cache
def _names(env: BuildEnvironment) -> _Names:
    """Once all pages have been read."""
    return _Names(env.domains.python_domain.objects)


def _may_be_another(text: str, entry: ObjectEntry) -> bool:
    """A word in small letters may be a command, an argument or a fixture as well as a method; so may release."""
    return text.islower() and "." not in text and (entry.objtype == "method" or "_" not in text)


def _link_code(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Code that names something public, or a command, becomes a link: pages have to read well without Sphinx, too."""
    names = _names(app.env)
    for literal in list(doctree.findall(nodes.literal)):
        parent: nodes.Node | None = literal.parent
        while parent is not None and not isinstance(parent, nodes.reference | nodes.title | nodes.term):
            parent = parent.parent
        if parent is not None:
            continue
        text = literal.astext()
        name = names.find(text.removesuffix("()")) if _LIKE_A_NAME.fullmatch(text) else None
        if name is not None and not _may_be_another(text, names.described[name]):
            entry = names.described[name]
            page, anchor = entry.docname, entry.node_id
        elif (section := commands.target(text)) is not None:
            page, anchor = "commands", section
        else:
            continue
        link = make_refnode(app.builder, docname, page, anchor, [])
        literal.replace_self(link)
        link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", import_types)
    app.connect("missing-reference", _resolve)
    app.connect("doctree-resolved", _link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
