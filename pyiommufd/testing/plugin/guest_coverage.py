"""The coverage that pytest-cov measures in guests, added to what it measures here."""

from __future__ import annotations

import base64
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

_NUMBERS = itertools.count()


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

    def add(self, data: str) -> None:
        """Add what pytest in a guest has sent: pytest-cov combines all files that are beside that of the run here."""
        from coverage import CoverageData

        here = self._measured
        folder = self._plugin.cov_controller.topdir
        received = CoverageData(
            basename=str(Path(folder, here.config.data_file)), suffix=f"guest.{os.getpid()}.{next(_NUMBERS)}"
        )
        received.loads(base64.b64decode(data))
        received.close()
        # True of the run here, but not of all: the tests ran in the guest.
        name = "run:disable_warnings"
        here.set_option(name, [*here.get_option(name), "no-data-collected", "module-not-imported"])
