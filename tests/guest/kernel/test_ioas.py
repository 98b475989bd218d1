"""Address spaces: what is mapped where, and what the kernel says to the rest."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
import threading
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
    ClosedError,
    Device,
    DMABuffer,
    DMAMapping,
    HostDevice,
    InUseError,
    IoctlError,
    NotFoundError,
)
from pyiommufd.testing.edu import EduDriver

IOVA = 0x100000
PAGE = mmap.PAGESIZE
U64_MAX = 0xFFFF_FFFF_FFFF_FFFF

Arrives = Callable[[EduDriver, DMABuffer], bool]


def test_map_and_unmap_are_seen_by_the_device(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    device.attach(ioas)
    assert not arrives(edu, buffer)
    mapping = ioas.map(buffer, iova=IOVA)
    assert (mapping.iova, mapping.length) == (IOVA, len(buffer))
    assert ioas.mappings == (mapping,)
    assert arrives(edu, buffer)
    mapping.unmap()
    assert not mapping.mapped
    assert not arrives(edu, buffer)


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


def test_remap_is_refused_with_the_mapping_in_the_way(ioas: IOAS, mapping: DMAMapping) -> None:
    with pytest.raises(AlreadyMappedError) as caught:
        ioas.map(DMABuffer(PAGE), iova=IOVA + PAGE)
    assert caught.value.errno == errno.EEXIST
    assert f"{IOVA:#x}..{IOVA + mapping.length - 1:#x}" in str(caught.value)
    assert ioas.mappings == (mapping,)


def test_mapping_across_the_one_that_is_there_is_refused(ioas: IOAS, mapping: DMAMapping) -> None:
    with pytest.raises(AlreadyMappedError):
        ioas.map(DMABuffer(8 * PAGE), iova=IOVA - PAGE)


def test_neighbouring_mappings_do_not_overlap(ioas: IOAS, mapping: DMAMapping) -> None:
    ioas.map(DMABuffer(PAGE), iova=IOVA - PAGE)
    ioas.map(DMABuffer(PAGE), iova=IOVA + mapping.length)
    assert len(ioas.mappings) == 3
    assert ioas.unmap_all() == mapping.length + 2 * PAGE


def test_reserved_addresses_are_refused_once_a_device_is_attached(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    with pytest.raises(IoctlError, match="takes mappings at") as caught:
        ioas.map(DMABuffer(PAGE), iova=0xFEE0_0000)
    assert caught.value.errno == errno.EINVAL
    assert not any(0xFEE0_0000 in allowed for allowed in ioas.iova_ranges())


def test_addresses_beyond_the_iommus_are_refused(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    beyond = ioas.iova_ranges()[-1].last + 1
    with pytest.raises(IoctlError) as caught:
        ioas.map(DMABuffer(PAGE), iova=beyond)
    assert caught.value.errno == errno.EINVAL
    ioas.map(DMABuffer(PAGE), iova=beyond - PAGE)


def test_range_that_wraps_is_refused(ioas: IOAS) -> None:
    with pytest.raises(IoctlError, match="wraps") as caught:
        ioas.map(DMABuffer(2 * PAGE), iova=U64_MAX + 1 - PAGE)
    assert caught.value.errno == errno.EOVERFLOW


def test_attach_narrows_the_ranges_and_detach_widens_them(device: Device, ioas: IOAS) -> None:
    assert [(r.start, r.last) for r in ioas.iova_ranges()] == [(0, U64_MAX)]
    device.attach(ioas)
    narrow = ioas.iova_ranges()
    assert narrow[-1].last < U64_MAX
    assert ioas.iova_alignment == PAGE
    device.detach()
    assert [(r.start, r.last) for r in ioas.iova_ranges()] == [(0, U64_MAX)]


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
    with pytest.raises(TypeError):
        ioas.map(memory, iova=IOVA)


def test_memory_that_is_not_contiguous_is_refused(ioas: IOAS, buffer: DMABuffer) -> None:
    with pytest.raises((TypeError, ValueError)):
        ioas.map(memoryview(buffer)[::2], iova=IOVA)
    assert ioas.unmap_all() == 0


def test_mapping_without_access_is_refused(ioas: IOAS, buffer: DMABuffer) -> None:
    with pytest.raises(ValueError, match="readable or writeable"):
        ioas.map(buffer, iova=IOVA, readable=False, writeable=False)


def test_unmap_of_a_range_takes_what_lies_within(ioas: IOAS) -> None:
    low, middle, high = (ioas.map(DMABuffer(PAGE), iova=IOVA + i * 0x10000) for i in range(3))
    assert ioas.unmap(IOVA, 0x20000) == 2 * PAGE
    assert (low.mapped, middle.mapped, high.mapped) == (False, False, True)
    assert ioas.mappings == (high,)
    low.unmap()  # gone already, and no error
    ioas.map(DMABuffer(PAGE), iova=IOVA)


def test_unmap_of_half_a_mapping_is_refused(ioas: IOAS, mapping: DMAMapping) -> None:
    for iova, length in ((IOVA, PAGE), (IOVA + PAGE, mapping.length), (IOVA + PAGE, PAGE)):
        with pytest.raises(NotFoundError) as caught:
            ioas.unmap(iova, length)
        assert caught.value.errno == errno.ENOENT
    assert mapping.mapped
    assert ioas.unmap(mapping.iova, mapping.length) == mapping.length


def test_record_agrees_with_the_kernel_where_a_range_cuts_the_second_mapping(ioas: IOAS) -> None:
    whole = ioas.map(DMABuffer(PAGE), iova=IOVA)
    cut = ioas.map(DMABuffer(2 * PAGE), iova=IOVA + 2 * PAGE)
    with pytest.raises(NotFoundError):
        ioas.unmap(IOVA, 3 * PAGE)
    assert cut.mapped
    # Whatever the kernel has done with the one before, the record says the same.
    taken = ioas.unmap_all() // PAGE
    assert taken == 2 + whole.mapped or (taken == 2 and not whole.mapped)


def test_unmap_where_nothing_is(ioas: IOAS) -> None:
    with pytest.raises(NotFoundError):
        ioas.unmap(IOVA, PAGE)
    assert ioas.unmap_all() == 0


@pytest.mark.parametrize(("iova", "length"), [(-1, PAGE), (IOVA, 0), (IOVA, -PAGE), (1 << 64, PAGE), (0, 1 << 64)])
def test_wrong_range_to_unmap(ioas: IOAS, mapping: DMAMapping, iova: int, length: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        ioas.unmap(iova, length)
    assert mapping.mapped


def test_unmap_all_blocks_the_device(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping, arrives: Arrives
) -> None:
    device.attach(ioas)
    assert arrives(edu, buffer)
    assert ioas.unmap_all() == mapping.length
    assert ioas.mappings == ()
    assert not mapping.mapped
    assert not arrives(edu, buffer)


def test_close_is_refused_while_a_device_is_attached(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping, arrives: Arrives
) -> None:
    device.attach(ioas)
    with pytest.raises(InUseError, match=device.name) as caught:
        ioas.close()
    assert caught.value.users == (device,)
    # Nothing has been destroyed.
    assert ioas.mappings == (mapping,)
    assert arrives(edu, buffer)
    device.detach()
    ioas.close()
    assert ioas.closed
    assert not mapping.mapped
    ioas.close()
    buffer.close()


def test_id_is_free_again_after_close(iommufd: IOMMUFD, ioas: IOAS) -> None:
    ioas_id = ioas.id
    other = iommufd.alloc_ioas()
    assert other.id != ioas_id
    ioas.close()
    assert iommufd.alloc_ioas().id == ioas_id


def test_with_block_closes(iommufd: IOMMUFD) -> None:
    with iommufd.alloc_ioas() as ioas:
        assert ioas in iommufd.objects
    assert ioas.closed
    assert ioas not in iommufd.objects


def test_use_after_close(ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.close()
    uses: tuple[Callable[[], object], ...] = (
        lambda: ioas.map(buffer),
        lambda: ioas.unmap(IOVA, PAGE),
        ioas.unmap_all,
        ioas.iova_ranges,
        lambda: ioas.iova_alignment,
    )
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    assert repr(ioas).endswith("closed>")


def test_maps_and_unmaps_of_several_threads(ioas: IOAS) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            buffer = DMABuffer(PAGE)
            for turn in range(50):
                ioas.map(buffer, iova=IOVA * (number + 1) + turn * PAGE).unmap()
                ioas.map(buffer, iova=IOVA * (number + 1) + turn * PAGE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(ioas.mappings) == 200
    assert ioas.unmap_all() == 200 * PAGE


def test_below_keeps_the_iova_within_the_devices_reach(device: Device, edu: EduDriver, ioas: IOAS) -> None:
    device.attach(ioas)
    first, second = DMABuffer(PAGE), DMABuffer(2 * PAGE)
    low = ioas.map(first, below=1 << 28)
    next_one = ioas.map(second, below=1 << 28)
    assert 0 < low.iova < next_one.iova
    assert next_one.iova + next_one.length <= 1 << 28
    first[:5] = b"below"
    edu.copy_in(low.iova, 5)
    edu.copy_out(next_one.iova, 5)
    assert second[:5] == b"below"
    with pytest.raises(ValueError, match="not both"):
        ioas.map(DMABuffer(PAGE), iova=IOVA, below=1 << 28)


def test_no_room_below(ioas: IOAS) -> None:
    ioas.map(DMABuffer(3 * PAGE), iova=PAGE)
    with pytest.raises(IoctlError) as caught:
        ioas.map(DMABuffer(PAGE), below=4 * PAGE)
    assert caught.value.errno == errno.ENOSPC
    # One page more is one page of room.
    assert ioas.map(DMABuffer(PAGE), below=5 * PAGE).iova == 4 * PAGE


def test_allowed_addresses_are_where_the_kernel_chooses(device: Device, ioas: IOAS) -> None:
    ioas.allow_iovas([(0x400_0000, 0x400_0000 + 2 * PAGE - 1)])
    assert {ioas.map(DMABuffer(PAGE)).iova for _ in range(2)} == {0x400_0000, 0x400_0000 + PAGE}
    with pytest.raises(IoctlError) as caught:
        ioas.map(DMABuffer(PAGE))
    assert caught.value.errno == errno.ENOSPC
    ioas.allow_iovas([])
    ioas.map(DMABuffer(PAGE))


def test_allowed_addresses_that_a_device_cannot_reach(device: Device, ioas: IOAS) -> None:
    ioas.allow_iovas([(0xFEE0_0000, 0xFEE0_FFFF)])
    with pytest.raises(IoctlError) as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EADDRINUSE
    ioas.allow_iovas([])
    device.attach(ioas)
    with pytest.raises(IoctlError, match="0xfee00000") as caught:
        ioas.allow_iovas([(0xFEE0_0000, 0xFEE0_FFFF)])
    assert caught.value.errno == errno.EADDRINUSE


def test_wrong_ranges_to_allow(ioas: IOAS) -> None:
    for wrong in ((PAGE, 0), (-1, PAGE), (0, 1 << 64)):
        with pytest.raises(ValueError, match="64-bit"):
            ioas.allow_iovas([wrong])
    with pytest.raises(IoctlError) as caught:
        ioas.allow_iovas([(0, 2 * PAGE), (PAGE, 3 * PAGE)])
    assert caught.value.errno == errno.EINVAL


def test_huge_pages(device: Device, ioas: IOAS, mapping: DMAMapping) -> None:
    assert ioas.huge_pages
    ioas.huge_pages = False
    assert not ioas.huge_pages
    ioas.huge_pages = True
    device.attach(ioas)
    with pytest.raises(IoctlError) as caught:
        ioas.huge_pages = False
    assert caught.value.errno == errno.EINVAL


def test_copy_is_the_same_memory(
    device: Device, edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    source = iommufd.alloc_ioas()
    original = source.map(buffer, iova=16 * IOVA)
    device.attach(ioas)
    copy = ioas.copy_from(source, original.iova, original.length, dst_iova=IOVA)
    assert (copy.iova, copy.length) == (IOVA, original.length)
    assert arrives(edu, buffer)
    # It holds the memory by itself.
    original.unmap()
    with pytest.raises(BufferError):
        buffer.close()
    assert arrives(edu, buffer)
    copy.unmap()
    assert not arrives(edu, buffer)
    buffer.close()


def test_copy_that_is_refused(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    source = iommufd.alloc_ioas()
    source.map(buffer, iova=IOVA, writeable=False)
    with pytest.raises(OSError, match="EPERM"):
        source.copy_from(source, IOVA, PAGE)
    with pytest.raises(NotFoundError):
        ioas.copy_from(source, IOVA, 5 * PAGE, writeable=False)
    ioas.map(DMABuffer(PAGE), iova=IOVA)
    with pytest.raises(AlreadyMappedError):
        ioas.copy_from(source, IOVA, PAGE, dst_iova=IOVA, writeable=False)
    with IOMMUFD() as other, pytest.raises(ValueError, match="another IOMMUFD"):
        ioas.copy_from(other.alloc_ioas(), IOVA, PAGE)
    source.close()
    with pytest.raises(ClosedError):
        ioas.copy_from(source, IOVA, PAGE)
    buffer.close()
    assert ioas.unmap_all() == PAGE


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
