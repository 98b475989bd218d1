"""Groups of page requests of any size: no device here makes such as are larger than one read takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyiommufd.kernel.fault_queue import FaultQueue
from pyiommufd.uapi import ioctls

SIZE = 40  # struct iommu_hwpt_pgfault


@pytest.mark.parametrize("requests", [1, 64, 65, 1000])
def test_a_group_comes_whole(monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    """The kernel gives nothing where the next group does not fit, and its fd stays readable (Linux 7.3, eventq.c)."""
    pending = [b"r" * SIZE * requests]
    rooms = []

    def read(file: object, length: int) -> bytes:
        rooms.append(length)
        return pending.pop() if pending and len(pending[0]) <= length else b""

    monkeypatch.setattr(ioctls, "file_read", read)
    monkeypatch.setattr(ioctls, "file_readable", lambda file: bool(pending))
    queue = cast("Any", SimpleNamespace(_queue=SimpleNamespace(_live=lambda: None)))
    assert len(FaultQueue._take(queue, cast("Any", None))) == SIZE * requests
    assert FaultQueue._take(queue, cast("Any", None)) == b""
    assert rooms[0] == rooms[-1] == 64 * SIZE
