"""Twins of the fixture ``change_process``: whose pinned memory it is."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiommufd import IOAS, DMABuffer, uapi
from pyiommufd.testing.mock import MockIOMMUFD
from pyiommufd.uapi import raw
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import PAGE, in_child, refused, wait_for

CAP_IPC_LOCK = 14
_CAPABILITY_VERSION_3 = 0x2008_0522


def _capability(call: str, data: ctypes.Array[ctypes.c_char]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    if getattr(libc, call)(header, data):
        raise OSError(ctypes.get_errno(), call)


@pytest.fixture
def limited() -> Iterator[None]:
    """Without CAP_IPC_LOCK in effect: memory that is locked counts."""
    before = ctypes.create_string_buffer(24)
    _capability("capget", before)
    effective, *rest = struct.unpack("=6I", before.raw)
    assert effective >> CAP_IPC_LOCK & 1, "this test is for root"
    _capability("capset", ctypes.create_string_buffer(struct.pack("=6I", effective & ~(1 << CAP_IPC_LOCK), *rest), 24))
    yield
    _capability("capset", before)


@dataclass(frozen=True)
class Accounted:
    """An address space with a device.

    Attributes:
        iommufd: Whose it is.
        ioas: The address space.
        rlimit_mode: Whether memory counts for each process; None where that is as it comes.
    """

    iommufd: MockIOMMUFD
    ioas: IOAS
    rlimit_mode: bool | None


ACCOUNTING = {"account_none": None, "account_user": False, "account_mm": True}


@pytest.fixture(params=list(ACCOUNTING.values()), ids=list(ACCOUNTING))
def accounted(request: pytest.FixtureRequest, iommufd: MockIOMMUFD, limited: None) -> Accounted:
    mode: bool | None = request.param
    if mode is not None:
        iommufd.rlimit_mode = mode
        assert iommufd.rlimit_mode is mode
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    iommufd.mock_device(ioas)
    return Accounted(iommufd, ioas, mode)


def kibibytes(process: int, field: str) -> int:
    """A field of a process's status, such as VmPin."""
    match = re.search(rf"^{field}:\s*(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1])


# The forked child takes what its parent has mapped: that is for a process that got the fd, so it is done by the fd.
@twin("change_process.basic", Route.RAW)
def test_basic(accounted: Accounted, buffer: memoryview) -> None:
    iommufd, ioas, parent, page = accounted.iommufd, accounted.ioas, os.getpid(), PAGE >> 10
    shared = DMABuffer(16 * PAGE, memfd=True)

    mapping = ioas.map(buffer[:PAGE])
    with refused(errno.EINVAL):
        iommufd.change_process()
    assert ioas.unmap(mapping.iova, PAGE) == PAGE

    ioas.map_file(shared, PAGE)
    iommufd.change_process()
    assert kibibytes(parent, "VmPin") == page

    fd = iommufd.fileno()
    command = raw.struct("iommu_ioas_change_process")

    def body() -> None:
        child = os.getpid()
        locked = page if accounted.rlimit_mode else 0
        assert (kibibytes(parent, "VmPin"), kibibytes(child, "VmPin")) == (page, 0)
        assert (kibibytes(parent, "VmLck"), kibibytes(child, "VmLck")) == (locked, 0)
        raw.ioctl(fd, uapi.IOMMU_IOAS_CHANGE_PROCESS, command)
        assert (kibibytes(parent, "VmPin"), kibibytes(child, "VmPin")) == (0, page)
        assert (kibibytes(parent, "VmLck"), kibibytes(child, "VmLck")) == (0, locked)

    assert wait_for(in_child(body)) == 0
    assert ioas.unmap_all() == PAGE
