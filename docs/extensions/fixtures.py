"""The fixtures of the pytest plugin, from their docstrings: ``.. fixtures:: MODULE``."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator

import pytest
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.typing import restify


class Fixtures(Directive):
    """An entry for each fixture of a module: its name, what it gives, its docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The entries."""
        lines: list[str] = []
        for name, found in vars(importlib.import_module(self.arguments[0])).items():
            if isinstance(found, pytest.FixtureDef | type(pytest.fixture(lambda: None))):
                lines += _entry(name, found)
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, self.arguments[0]), self.content_offset, parent)
        return parent.children


def _entry(name: str, found: object) -> Iterator[str]:
    function = inspect.unwrap(typing.cast("typing.Any", found))
    given = typing.get_type_hints(function)["return"]
    if typing.get_origin(given) is not None:
        (given,) = typing.get_args(given)
    yield f".. fixture:: {name}"
    yield ""
    yield from (f"   {line}" for line in (inspect.getdoc(function) or "").splitlines())
    yield ""
    yield f"   :Gives: {restify(given, 'smart')}"
    yield ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_object_type("fixture", "fixture", "single: fixture; %s")
    app.add_directive("fixtures", Fixtures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
