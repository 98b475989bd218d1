"""The `guest` marker: what it says in ``pytest --markers``, and what those of a test ask for together."""

from __future__ import annotations

from typing import Any

import pytest

MARKER = (
    "guest(iommu=…, kernel=…, devices=…): runs in a guest of that kind; without --guest only where /dev/iommu is, and "
    "with arguments only in a guest that has them. Also: qemu, memory, cpus, kernel_arguments, qemu_arguments"
)


def wishes(item: pytest.Item) -> dict[str, Any] | None:
    """What the `guest` markers of a test ask for, the closest first; None where it has none.

    Raises:
        pytest.UsageError: A marker has positional arguments.
    """
    result: dict[str, Any] | None = None
    for mark in item.iter_markers("guest"):
        if mark.args:
            raise pytest.UsageError(f"{item.nodeid}: the guest marker takes keyword arguments only")
        result = dict(mark.kwargs) | (result or {})
    return result
