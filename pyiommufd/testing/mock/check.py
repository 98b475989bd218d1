"""Checks made by the mock IOMMU's test command, which reports a failed check by an errno."""

from __future__ import annotations

import errno
from collections.abc import Callable

from pyiommufd.errors import IoctlError


def holds(check: Callable[[], None], no: int = errno.EINVAL) -> bool:
    """Whether a check of the test command succeeds.

    Args:
        check: Issues it.
        no: The errno that stands for no; any other is raised.
    """
    try:
        check()
    except IoctlError as error:
        if error.errno == no:
            return False
        raise
    return True
