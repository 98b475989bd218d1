"""The library that does nothing."""

from __future__ import annotations

from pyiommufd import _uapi
from tests.conformance.noop import Library


def test_it_knows_every_call_that_issues_an_ioctl() -> None:
    library = Library(_uapi.lib)
    library.off = True
    assert library.pyiommufd_set_irqs(None, None, None, 0) == 0
