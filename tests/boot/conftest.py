"""What the tests that start guests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.plugin_project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project, for `pytest --guest`."""
    (tmp_path / "pytest.ini").touch()
    return Project(tmp_path)
