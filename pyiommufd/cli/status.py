"""The exit statuses of the command line."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from pyiommufd.errors import (
    ClaimRefusedError,
    IoctlError,
    IOMMUFDError,
    MissingLibraryError,
    Refusal,
    UnsupportedError,
)

DONE = 0
FAILED = 1
"""Refused, or failed."""
USAGE = 2
"""Wrong arguments; click's own."""
MISSING = 3
"""This machine lacks something."""

_MACHINE_KINDS = frozenset({"noiommu", "isolated-msi", "cdev"})
"""The refusals of a claim (`pyiommufd.host.uses.KINDS`) for want of what this machine does not have."""


def status_of(error: IOMMUFDError) -> int:
    """The exit status that an error ends a command with."""
    if isinstance(error, UnsupportedError | MissingLibraryError):
        return MISSING
    if isinstance(error, ClaimRefusedError):
        return status_of_refusals(error.refusals)
    if isinstance(error, IoctlError) and error.request == "open":
        return MISSING if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else FAILED
    return FAILED


def status_of_refusals(refusals: Iterable[Refusal]) -> int:
    """The exit status of a command that was refused, or would be."""
    return MISSING if any(refusal.kind in _MACHINE_KINDS for refusal in refusals) else FAILED
