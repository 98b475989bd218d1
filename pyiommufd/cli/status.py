"""The exit statuses of the command line."""

from __future__ import annotations

import errno

from pyiommufd.errors import IoctlError, IOMMUFDError, MissingLibraryError, UnsupportedError

DONE = 0
FAILED = 1
"""Refused, or failed."""
USAGE = 2
"""Wrong arguments; click's own."""
MISSING = 3
"""This machine lacks something."""


def status_of(error: IOMMUFDError) -> int:
    """The exit status that an error ends a command with."""
    if isinstance(error, UnsupportedError | MissingLibraryError):
        return MISSING
    if isinstance(error, IoctlError) and error.request == "open":
        return MISSING if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else FAILED
    return FAILED
