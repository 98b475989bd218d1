"""Which memory can be mapped, for what access, and what becomes of it where that is refused."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AlreadyMappedError,
    Claim,
    Device,
    DMABuffer,
    HostDevice,
    IoctlError,
)
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.uapi import raw
from tests import by_id
from tests.guest.dma import IOVA

PAGE = mmap.PAGESIZE


def test_iova_chosen_by_the_kernel_reaches_the_memory(device: Device, edu: EduDriver, ioas: IOAS) -> None:
    device.attach(ioas)
    # So that the choice is within the 28 bits of the device, which the kernel does not know.
    ioas.map(DMABuffer(PAGE), iova=IOVA)
    buffer = DMABuffer(PAGE)
    mapping = ioas.map(buffer)
    assert any(mapping.iova in allowed for allowed in ioas.iova_ranges())
    assert mapping.iova != IOVA
    if mapping.iova < 1 << 28:
        buffer[:4] = b"here"
        edu.copy_in(mapping.iova, 4)
        edu.copy_out(mapping.iova + 8, 4)
        assert buffer[8:12] == b"here"
    # Taken, as a second mapping there shows.
    with pytest.raises(AlreadyMappedError):
        ioas.map(DMABuffer(PAGE), iova=mapping.iova)


def test_memory_that_is_not_writeable_for_the_device_stays_as_it_is(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer
) -> None:
    device.attach(ioas)
    ioas.map(buffer, iova=IOVA, writeable=False)
    buffer[:4] = b"keep"
    edu.copy_in(IOVA, 4)
    buffer[:4] = b"KEEP"
    edu.copy_out(IOVA, 4)
    assert buffer[:4] == b"KEEP"
    # It was readable: what was read shows elsewhere.
    result = DMABuffer(PAGE)
    ioas.map(result, iova=2 * IOVA)
    edu.copy_out(2 * IOVA, 4)
    assert result[:4] == b"keep"


def test_read_only_memory_takes_writeable_false(device: Device, edu: EduDriver, ioas: IOAS) -> None:
    device.attach(ioas)
    memory = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)
    with pytest.raises(ValueError, match="writeable=False"):
        ioas.map(memory, iova=IOVA)
    mapping = ioas.map(memory, iova=IOVA, writeable=False)
    mapping.unmap()
    memory.close()


def test_page_aligned_part_of_a_buffer(device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer) -> None:
    device.attach(ioas)
    ioas.map(memoryview(buffer)[PAGE : 2 * PAGE], iova=IOVA)
    edu.copy_out(IOVA, 1)
    buffer[:] = b"\x11" * len(buffer)
    source = DMABuffer(PAGE)
    source[:4] = b"part"
    ioas.map(source, iova=2 * IOVA)
    edu.copy_in(2 * IOVA, 4)
    edu.copy_out(IOVA, 4)
    assert buffer[PAGE : PAGE + 4] == b"part"
    assert buffer[:PAGE] == b"\x11" * PAGE
    assert buffer[PAGE + 4 :] == b"\x11" * (len(buffer) - PAGE - 4)


def test_numpy_array_over_a_buffer(device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer) -> None:
    device.attach(ioas)
    array = np.frombuffer(buffer, dtype=np.uint32)
    ioas.map(array, iova=IOVA)
    array[:2] = (0xCAFE, 0)
    edu.copy_in(IOVA, 4)
    edu.copy_out(IOVA + 4, 4)
    assert array[1] == 0xCAFE


def test_wrong_iova_unmaps_nothing_of_others(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    """Another thread, or process, has mapped something where this thread had something before."""
    ioas.map(buffer, iova=IOVA).unmap()
    by_id.map_memory(iommufd.fileno(), ioas.id, raw.address_of(buffer), PAGE, IOVA)
    with pytest.raises(ValueError, match="64 bits"):
        ioas.map(buffer, iova=-PAGE)
    assert by_id.unmap(iommufd.fileno(), ioas.id, IOVA, PAGE) == PAGE


@pytest.mark.parametrize(
    ("iova", "error"), [(IOVA + 1, ValueError), (-PAGE, ValueError), (1 << 64, ValueError), ("0", TypeError)]
)
def test_wrong_iova(ioas: IOAS, iova: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        ioas.map(DMABuffer(PAGE), iova=iova)
    assert ioas.unmap_all() == 0


def test_memory_off_page_boundaries_is_refused(ioas: IOAS, buffer: DMABuffer) -> None:
    for memory in (
        bytearray(PAGE + 1),
        np.zeros(100),
        memoryview(buffer)[1 : PAGE + 1],
        memoryview(buffer)[: PAGE - 1],
    ):
        with pytest.raises(ValueError, match="DMABuffer"):
            ioas.map(memory, iova=IOVA)
    with pytest.raises(ValueError, match="0 bytes"):
        ioas.map(memoryview(buffer)[:0], iova=IOVA)
    assert ioas.unmap_all() == 0


@pytest.mark.parametrize("memory", [None, 5, "text"])
def test_what_is_no_memory_is_refused(ioas: IOAS, memory: object) -> None:
    words = f"a buffer, such as a DMABuffer, not {type(memory).__name__}"
    with pytest.raises(TypeError, match=words):
        ioas.map(memory, iova=IOVA)
    with pytest.raises(TypeError, match=words):
        ioas.map_many(memory, [(0, PAGE, None)])


def test_memory_that_is_not_contiguous_is_refused(ioas: IOAS, buffer: DMABuffer) -> None:
    with pytest.raises(ValueError, match="does not share its memory"):
        ioas.map(memoryview(buffer)[::2], iova=IOVA)
    assert ioas.unmap_all() == 0


def test_mapping_without_access_is_refused(ioas: IOAS, buffer: DMABuffer) -> None:
    with pytest.raises(ValueError, match="readable or writeable"):
        ioas.map(buffer, iova=IOVA, readable=False, writeable=False)


def test_limit_on_locked_memory(
    claimed: Claim, first: HostDevice, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    """Root pins as it likes; a user does not, and is told by what."""

    def child() -> list[str]:
        with IOMMUFD() as own:
            device, space = own.bind(first), own.alloc_ioas()
            device.attach(space)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * PAGE, 2 * PAGE))
            space.map(DMABuffer(16 * PAGE)).unmap()
            os.setuid(65534)
            space.map(DMABuffer(PAGE))
            with pytest.raises(IoctlError) as caught:
                space.map(DMABuffer(16 * PAGE))
            return [errno.errorcode[caught.value.errno or 0], str(caught.value)]

    code, text = in_child(child)
    assert code == "ENOMEM"
    assert f"locked memory is limited to {2 * PAGE:#x} bytes" in text
    assert "ulimit -l" in text


def test_memory_of_a_failed_map_is_let_go(ioas: IOAS) -> None:
    """Also while the exception, with the frames of its traceback, is kept."""
    ioas.map(DMABuffer(PAGE), iova=IOVA)
    kept = []
    wrong: list[dict[str, Any]] = [{"iova": IOVA}, {"iova": 1 << 64}, {"below": PAGE}, {"iova": 17}]
    for arguments in wrong:
        buffer = DMABuffer(PAGE)
        with pytest.raises((IoctlError, ValueError)) as caught:
            ioas.map(buffer, **arguments)
        kept.append(caught)
        buffer.close()
    buffer = DMABuffer(2 * PAGE)
    for pieces in ([(0, PAGE, 2 * IOVA), (PAGE, PAGE, IOVA)], [(0, 3 * PAGE, None)], []):
        with pytest.raises((IoctlError, ValueError)) as caught:
            ioas.map_many(buffer, pieces)
        kept.append(caught)
    buffer.close()


def test_what_is_dropped_with_its_memory_is_collected(in_child: Callable[[Callable[[], Any]], Any]) -> None:
    """A memoryview and what holds it, in one cycle of garbage: some CPythons crash there (gh-77894)."""

    def child() -> int:
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(20):
            iommufd = IOMMUFD()
            view = memoryview(DMABuffer(2 * PAGE))
            iommufd.alloc_ioas().map(view[:PAGE])
            cycle: list[Any] = [view, iommufd]
            cycle.append(cycle)
            del iommufd, view, cycle
            gc.collect()
        return 20

    assert in_child(child) == 20
