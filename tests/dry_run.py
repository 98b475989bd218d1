"""What a release or a recovery would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyiommufd.host.claims.steps import Step


def dry_run(work: Callable[..., Any], *arguments: Any) -> tuple[Step, ...]:
    """The steps that it tells of in a dry run."""
    steps: list[Step] = []
    work(*arguments, report=steps.append, dry_run=True)
    return tuple(steps)
