"""The coverage that pytest-cov measures in guests, added to what it measures here."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coverage import CoverageData

_NUMBERS = itertools.count()

# Coverage keeps the lines of a file as a bit field up to the last one.
_LAST_LINE = 1 << 24
_SURROGATE = re.compile("[\ud800-\udfff]")


class GuestCoverage:
    """Where the coverage of guests goes, if any is measured.

    Args:
        config: The configuration of the run here.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._plugin: Any = config.pluginmanager.getplugin("_cov")

    @property
    def _measured(self) -> Any:
        """The `coverage.Coverage` of the run here, or None. A worker of pytest-xdist has it once its session starts."""
        return getattr(getattr(self._plugin, "cov_controller", None), "cov", None)

    @property
    def measures(self) -> bool:
        """Whether the run here measures coverage."""
        return self._measured is not None

    @property
    def environment(self) -> dict[str, str]:
        """What pytest in a guest needs: a place for its data that it can write to, and that no other run uses."""
        return {"COVERAGE_FILE": "/tmp/pyiommufd.coverage"} if self.measures else {}  # noqa: S108 - the guest's

    def add(self, message: Mapping[str, Any]) -> None:
        """Add what pytest in a guest has sent: pytest-cov combines all files that are beside that of the run here.

        Raises:
            ValueError: It is not what `in_guest.measured` makes. Nothing was added.
        """
        from coverage import CoverageData

        here = self._measured
        folder = self._plugin.cov_controller.topdir
        received = CoverageData(
            basename=str(Path(folder, here.config.data_file)), suffix=f"guest.{os.getpid()}.{next(_NUMBERS)}"
        )
        fill(received, message, branches=bool(here.get_option("run:branch")))
        received.close()
        # True of the run here, but not of all: the tests ran in the guest.
        name = "run:disable_warnings"
        here.set_option(name, [*here.get_option(name), "no-data-collected", "module-not-imported"])


def fill(data: CoverageData, message: Mapping[str, Any], *, branches: bool) -> None:
    """Put what `in_guest.measured` has made into an empty object. Nothing of it is executed.

    Args:
        data: The empty object.
        message: What a guest has sent.
        branches: Whether branches are measured, or lines only.

    Raises:
        ValueError: The message is malformed.
    """
    _check(message, branches=branches)
    add: Any = data.add_arcs if branches else data.add_lines
    add({})
    for name, tracer in message["tracers"].items():
        data.touch_file(name, tracer)
    for context, files in message["contexts"].items():
        data.set_context(context)
        add(files)


def _check(message: Mapping[str, Any], *, branches: bool) -> None:
    tracers, contexts = message.get("tracers"), message.get("contexts")
    is_element = _is_arc if branches else _is_line
    if not (
        isinstance(tracers, dict)
        and all(_is_text(text) for pair in tracers.items() for text in pair)
        and isinstance(contexts, dict)
        and all(_is_text(context) and isinstance(files, dict) for context, files in contexts.items())
        and all(files.keys() <= tracers.keys() for files in contexts.values())
        and all(isinstance(found, list) for files in contexts.values() for found in files.values())
        and all(is_element(each) for files in contexts.values() for found in files.values() for each in found)
    ):
        raise ValueError("the guest sent coverage in a form that is not known here")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def _is_line(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LAST_LINE


def _is_arc(value: object) -> bool:
    # The number of an entry or exit is negative.
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and abs(n) <= _LAST_LINE for n in value)
