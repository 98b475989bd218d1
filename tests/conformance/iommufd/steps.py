"""Steps that the library leaves out or refuses on purpose, and checks that several twins make."""

from __future__ import annotations

import contextlib
import os
import random
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import IOAS, IOMMUFD, DMABuffer, IoctlError, uapi
from pyiommufd.testing.mock import MockAccess
from pyiommufd.uapi import raw
from tests import by_id
from tests.by_id import BOTH

PAGE = 4096
HUGE = 2 << 20

_noise = random.Random(0)  # noqa: S311 - what is copied, no secret


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """The block has to be refused by the kernel with this errno."""
    with pytest.raises(IoctlError) as caught:
        yield
    assert caught.value.errno == code


def aligned(size: int) -> memoryview:
    """Shared memory at an address that is a multiple of a huge page."""
    memory = memoryview(DMABuffer(HUGE + size))
    start = -raw.address_of(memory) % HUGE
    return memory[start : start + size]


def issue(iommufd: IOMMUFD, request: int, name: str, **fields: Any) -> raw.Struct:
    """One ioctl with one of the kernel's structs, which is returned as the kernel left it."""
    command = raw.struct(name, **fields)
    raw.ioctl(iommufd.fileno(), request, command)
    return command


def map_at(ioas: IOAS, address: int, length: int, iova: int | None = None) -> int:
    """Map any piece of memory, on page boundaries or not. Returns its iova."""
    return by_id.map_memory(ioas.iommufd.fileno(), ioas.id, address, length, iova)


def map_file_at(ioas: IOAS, file: int, start: int, length: int) -> int:
    """Map any piece of a file, on page boundaries or not. Returns its iova."""
    command = raw.struct("iommu_ioas_map_file", ioas_id=ioas.id, flags=BOTH, fd=file, start=start, length=length)
    raw.ioctl(ioas.iommufd.fileno(), uapi.IOMMU_IOAS_MAP_FILE, command)
    return command.iova


def unmap_at(ioas: IOAS, iova: int, length: int) -> int:
    """Unmap what `map_at` mapped. Returns how many bytes that were."""
    return by_id.unmap(ioas.iommufd.fileno(), ioas.id, iova, length)


def mock_devices() -> set[str]:
    """The mock devices that the machine has."""
    return {path.name for path in Path("/sys/bus/iommufd_mock/devices").iterdir()}


def in_child(body: Callable[[], object]) -> int:
    """Run a function in a forked child. Returns its process id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def wait_for(child: int) -> int:
    """The exit status of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_access(access: MockAccess, iova: int, memory: memoryview, *, slow: bool = False) -> None:
    """Reads and writes of every short length around a page boundary, and one of all pages, hit this memory."""
    memory[:] = _noise.randbytes(len(memory))
    for offset in range(PAGE - 50, PAGE + 50):
        for length in range(1, 64):
            there = memory[offset : offset + length]
            assert access.read(iova + offset, length, slow=slow) == there
            data = _noise.randbytes(length)
            access.write(iova + offset, data, slow=slow)
            assert there == data
    assert access.read(iova, len(memory), slow=slow) == memory
