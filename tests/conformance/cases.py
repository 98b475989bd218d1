"""Twins: our tests that establish what a case of one of the kernel's own C programs does, and by which way.

A twin is a pytest test under the decorator `twin`, which names the case without its variant. Its variants are the
parameters of its fixture, under the C program's names: the case of ``test_copy_area[mock_domain]`` is
``iommufd_ioas.mock_domain.copy_area``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

import pytest

_Test = TypeVar("_Test", bound=Callable[..., object])


class Route(StrEnum):
    """By what a twin reaches the kernel; the lowest of those it needs."""

    PUBLIC = "public API"
    """`pyiommufd`; the mock devices of its set-up do not count."""
    MOCK = "testing.mock"
    """`pyiommufd.testing.mock` as well: what only the mock IOMMU can be asked."""
    RAW = "uapi.raw"
    """`pyiommufd.uapi.raw` as well: what the library refuses before the ioctl, or leaves to others."""


def twin(case: str, route: Route) -> Callable[[_Test], _Test]:
    """Mark a test as the twin of a case.

    Args:
        case: The C program's fixture and case, without the variant: ``iommufd_ioas.copy_area``.
        route: How it goes.
    """
    if not re.fullmatch(r"\w+\.\w+", case):
        raise ValueError(f"{case!r} is not FIXTURE.CASE")

    def mark(test: _Test) -> _Test:
        marked: _Test = pytest.mark.twin(case=case, route=route)(test)
        return marked

    return mark
