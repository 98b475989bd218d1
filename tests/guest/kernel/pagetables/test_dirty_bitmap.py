"""Which pages devices have written to, by page tables that track it: on the mock IOMMU, as VT-d under QEMU cannot."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyiommufd import HWPT, IOAS, Device, DMABuffer, IoctlError, UnsupportedError, uapi
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from pyiommufd.uapi import ioctls, raw
from tests import by_id

IOVA = commands.APERTURE_START
PAGE = mmap.PAGESIZE


@pytest.fixture
def tracking(mock_ioas: IOAS, mock_device: MockDevice) -> HWPT:
    """A page table that tracks, and the device on it; a mark is for one page."""
    mock_ioas.huge_pages = False
    hwpt = mock_device.alloc_hwpt(mock_ioas, dirty_tracking=True, pasid=True)
    mock_device.replace(hwpt)
    hwpt.set_dirty_tracking(True)
    return hwpt


def test_dirty_pages_are_those_that_were_written(mock_ioas: IOAS, mock_device: MockDevice) -> None:
    # Or one mark would be for all that lies together in memory by chance.
    mock_ioas.huge_pages = False
    buffer = DMABuffer(200 * PAGE)
    mock_ioas.map(buffer, iova=IOVA)
    hwpt = mock_device.alloc_hwpt(mock_ioas, dirty_tracking=True, pasid=True)
    mock_device.replace(hwpt)
    hwpt.set_dirty_tracking(True)
    clean = hwpt.dirty_bitmap(IOVA, len(buffer))
    assert (clean.count(), list(clean.ranges()), clean.pages, bool(clean)) == (0, [], 200, False)

    written = [0, 1, 2, 63, 64, 130, 199]
    assert mock_device.set_dirty(IOVA, written, count=200) == len(written)
    kept = hwpt.dirty_bitmap(IOVA, len(buffer), clear=False)
    read = hwpt.dirty_bitmap(IOVA, len(buffer))
    for bitmap in (kept, read):
        assert bitmap.count() == len(written)
        assert [page for page in range(200) if IOVA + page * PAGE + 17 in bitmap] == written
        bits = np.unpackbits(np.asarray(bitmap.words).view(np.uint8), count=200, bitorder="little")
        assert np.flatnonzero(bits).tolist() == written
    spans = [(span.start - IOVA, span.last - IOVA + 1) for span in read.ranges()]
    assert [(start // PAGE, end // PAGE) for start, end in spans] == [(0, 3), (63, 65), (130, 131), (199, 200)]
    assert not hwpt.dirty_bitmap(IOVA, len(buffer))


@pytest.mark.parametrize("page_size", [2048, 4096, 8192, 1 << 16])
def test_dirty_pages_of_any_size_and_range(mock_ioas: IOAS, mock_device: MockDevice, page_size: int) -> None:
    length = 64 * PAGE
    mock_ioas.huge_pages = False
    mock_ioas.map(DMABuffer(length), iova=IOVA)
    hwpt = mock_device.alloc_hwpt(mock_ioas, dirty_tracking=True, pasid=True)
    mock_device.replace(hwpt)
    hwpt.set_dirty_tracking(True)
    assert mock_device.set_dirty(IOVA, [0, 33], count=64) == 2
    whole = hwpt.dirty_bitmap(IOVA, length, page_size=page_size, clear=False)
    wanted = {byte // page_size for page in (0, 33) for byte in range(page * PAGE, (page + 1) * PAGE, 2048)}
    assert {page for page in range(whole.pages) if IOVA + page * page_size in whole} == wanted
    # Half of it: the other page stays noted.
    upper = hwpt.dirty_bitmap(IOVA + length // 2, length // 2, page_size=page_size)
    assert upper.count() == len({page for page in wanted if page >= length // 2 // page_size})
    assert hwpt.dirty_bitmap(IOVA, length).count() == 1


def test_tracking_can_be_stopped_and_begun_anew(mock_ioas: IOAS, mock_device: MockDevice) -> None:
    mock_ioas.map(DMABuffer(PAGE), iova=IOVA)
    hwpt = mock_device.alloc_hwpt(mock_ioas, dirty_tracking=True, pasid=True)
    mock_device.replace(hwpt)
    for _ in range(2):
        hwpt.set_dirty_tracking(True)
        assert mock_device.set_dirty(IOVA, [0], count=1) == 1
        hwpt.set_dirty_tracking(False)
        with pytest.raises(IoctlError):
            mock_device.set_dirty(IOVA, [0], count=1)
    # What was noted before is forgotten at the new beginning.
    hwpt.set_dirty_tracking(True)
    assert not hwpt.dirty_bitmap(IOVA, PAGE)


def test_dirty_tracking_that_was_not_asked_for(mock_ioas: IOAS, mock_device: MockDevice, device: Device) -> None:
    for made_for, ioas in ((mock_device, mock_ioas), (device, device.iommufd.alloc_ioas())):
        hwpt = made_for.alloc_hwpt(ioas)
        with pytest.raises(UnsupportedError, match=f"SET_DIRTY_TRACKING on <HWPT {hwpt.id}"):
            hwpt.set_dirty_tracking(True)
        with pytest.raises(UnsupportedError, match="GET_DIRTY_BITMAP"):
            hwpt.dirty_bitmap(IOVA, PAGE)


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "match"),
    [
        (IOVA, PAGE, 0, "power of two"),
        (IOVA, PAGE, -PAGE, "power of two"),
        (IOVA, 3 * PAGE, 3 * PAGE, "power of two"),
        (IOVA + 1, PAGE, PAGE, "multiples"),
        (IOVA, PAGE + 1, PAGE, "multiples"),
        (IOVA, 0, PAGE, "range"),
        (-PAGE, PAGE, PAGE, "range"),
        ((1 << 64) - PAGE, 2 * PAGE, PAGE, "wrap"),
    ],
)
def test_ranges_that_are_none(
    mock_ioas: IOAS, mock_device: MockDevice, iova: int, length: int, page_size: int, match: str
) -> None:
    hwpt = mock_device.alloc_hwpt(mock_ioas, dirty_tracking=True)
    with pytest.raises(ValueError, match=match):
        hwpt.dirty_bitmap(iova, length, page_size=page_size)


# Ranges with holes


def pages_of(hwpt: HWPT, first: int, count: int, page_size: int = PAGE) -> list[int]:
    """The pages of a range, by their number from `IOVA` on, that were written to; they stay noted."""
    bitmap = hwpt.dirty_bitmap(IOVA + first * PAGE, count * PAGE, page_size=page_size, clear=False)
    return [page for page in range(first, first + count) if IOVA + page * PAGE in bitmap]


@pytest.mark.parametrize(
    ("mapped", "hole"),
    [
        ([], 0),
        ([(1, 11)], 0),
        ([(0, 5), (6, 6)], 5),
        ([(0, 1), (2, 1), (5, 7)], 1),
        ([(0, 11)], 11),
        ([(0, 4), (4, 4), (8, 3)], 11),
    ],
)
def test_a_hole_is_refused_and_nothing_is_cleared(
    mock: MockIOMMUFD,
    mock_ioas: IOAS,
    mock_device: MockDevice,
    tracking: HWPT,
    mapped: list[tuple[int, int]],
    hole: int,
) -> None:
    for first, count in mapped:
        mock_ioas.map(DMABuffer(count * PAGE), iova=IOVA + first * PAGE)
    written = [page for first, count in mapped for page in range(first, first + count)]
    mock_device.set_dirty(IOVA, written, count=12)
    with LeakCheck(mock):
        for clear in (False, True):
            with pytest.raises(ValueError, match=f"nothing is mapped at {IOVA + hole * PAGE:#x},.*by itself"):
                tracking.dirty_bitmap(IOVA, 12 * PAGE, clear=clear)
    # What it says to do instead: nothing is lost.
    found = [page for first, count in mapped for page in pages_of(tracking, first, count)]
    assert found == written
    # The kernel itself takes what is behind the hole for clean.
    memory = bytearray(8)
    no_clear = uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR
    ioctls.hwpt_get_dirty_bitmap(tracking._c, no_clear, IOVA, 12 * PAGE, PAGE, memory)
    assert int.from_bytes(memory, "little") == (1 << hole) - 1


@pytest.mark.parametrize("shared", [False, True])
def test_a_hole_at_every_place(
    mock: MockIOMMUFD, mock_ioas: IOAS, mock_device: MockDevice, tracking: HWPT, *, shared: bool
) -> None:
    view = memoryview(DMABuffer(8 * PAGE))
    pieces = [view[page * PAGE : (page + 1) * PAGE] for page in range(8)]
    mappings = [mock_ioas.map(piece, iova=IOVA + page * PAGE) for page, piece in enumerate(pieces)]
    if shared:
        mock.fileno()
    assert mock.shared is shared
    for hole in range(8):
        mappings[hole].unmap()
        for first, count in ((0, 8), (hole, 1), (hole, 8 - hole), (0, hole + 1)):
            with pytest.raises(ValueError, match=f"nothing is mapped at {IOVA + hole * PAGE:#x},"):
                tracking.dirty_bitmap(IOVA + first * PAGE, count * PAGE)
        mappings[hole] = mock_ioas.map(pieces[hole], iova=IOVA + hole * PAGE)
        mock_device.set_dirty(IOVA, [hole, 7], count=8)
        with LeakCheck(mock):  # the question maps nothing
            dirty = tracking.dirty_bitmap(IOVA, 8 * PAGE)
        assert {page for page in range(8) if IOVA + page * PAGE in dirty} == {hole, 7}
        assert [place for one in mock_ioas.mappings for place in one.ranges()] == [
            (IOVA + page * PAGE, PAGE) for page in range(8)
        ]


def test_what_another_process_unmaps_of_many_is_missed(
    mock: MockIOMMUFD, mock_ioas: IOAS, tracking: HWPT, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    mock_ioas.map_many(DMABuffer(6 * PAGE), [(at * PAGE, PAGE, IOVA + at * PAGE) for at in range(6)])
    assert not tracking.dirty_bitmap(IOVA, 6 * PAGE)
    fd, number = mock.fileno(), mock_ioas.id
    assert in_child(lambda: by_id.unmap(fd, number, IOVA + 3 * PAGE, PAGE)) == PAGE
    with pytest.raises(ValueError, match=f"nothing is mapped at {IOVA + 3 * PAGE:#x},"):
        tracking.dirty_bitmap(IOVA, 6 * PAGE)


def test_what_is_on_record_is_not_asked_for(
    mock: MockIOMMUFD, mock_ioas: IOAS, tracking: HWPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces, a copy, and single mappings; cut at both ends."""
    asked = []
    monkeypatch.setattr(ioctls, "ioas_first_hole", lambda *of: asked.append(of[1:]))
    source = mock.alloc_ioas()
    source.map(DMABuffer(3 * PAGE), iova=IOVA)
    mock_ioas.map_many(DMABuffer(2 * PAGE), [(0, PAGE, IOVA + PAGE), (PAGE, PAGE, IOVA)])
    mock_ioas.copy_from(source, IOVA + PAGE, 2 * PAGE, dst_iova=IOVA + 2 * PAGE)
    mock_ioas.map(DMABuffer(4 * PAGE), iova=IOVA + 4 * PAGE)
    for first in range(8):
        for count in range(1, 9 - first):
            assert not tracking.dirty_bitmap(IOVA + first * PAGE, count * PAGE)
    assert asked == []
    tracking.dirty_bitmap(IOVA, 9 * PAGE)
    assert asked == [(IOVA, 9 * PAGE)]


def _many(ioas: IOAS, memory: DMABuffer) -> None:
    ioas.map_many(memory, [((2 - at) * 4 * PAGE, 4 * PAGE, IOVA + at * 4 * PAGE) for at in (2, 0, 1)])


def _files(ioas: IOAS, memory: DMABuffer) -> None:
    for at in range(3):
        ioas.map_file(memory, 4 * PAGE, start=at * 4 * PAGE, iova=IOVA + at * 4 * PAGE)


def _copy(ioas: IOAS, memory: DMABuffer) -> None:
    source = ioas.iommufd.alloc_ioas()
    view = memoryview(memory)
    for at in range(3):
        source.map(view[at * 6 * PAGE : (at + 1) * 6 * PAGE], iova=at * 6 * PAGE)
    view.release()
    # Of the first and the last only a part.
    ioas.copy_from(source, 3 * PAGE, 12 * PAGE, dst_iova=IOVA)
    source.close()


@pytest.mark.parametrize(("map_all", "gone"), [(_many, (4, 4)), (_files, (4, 4)), (_copy, (3, 6))])
def test_pieces_that_touch_are_one_range(
    mock_ioas: IOAS,
    mock_device: MockDevice,
    tracking: HWPT,
    map_all: Callable[[IOAS, DMABuffer], None],
    gone: tuple[int, int],
) -> None:
    map_all(mock_ioas, DMABuffer(18 * PAGE, memfd=True))
    mock_device.set_dirty(IOVA, [0, 3, 4, 11], count=12)
    assert pages_of(tracking, 0, 12) == [0, 3, 4, 11]
    assert pages_of(tracking, 2, 9) == [3, 4]
    # One of them less: the kernel lets pieces go one by one.
    assert mock_ioas.unmap(IOVA + gone[0] * PAGE, gone[1] * PAGE) == gone[1] * PAGE
    with pytest.raises(ValueError, match=f"nothing is mapped at {IOVA + gone[0] * PAGE:#x},"):
        tracking.dirty_bitmap(IOVA, 12 * PAGE)
    assert pages_of(tracking, 0, gone[0]) == [page for page in (0, 3) if page < gone[0]]
    assert pages_of(tracking, sum(gone), 12 - sum(gone)) == [11]


def test_what_another_process_has_mapped_is_mapped(
    mock: MockIOMMUFD,
    mock_ioas: IOAS,
    mock_device: MockDevice,
    tracking: HWPT,
    in_child: Callable[[Callable[[], Any]], Any],
) -> None:
    mock_ioas.map(DMABuffer(2 * PAGE), iova=IOVA)
    fd, number = mock.fileno(), mock_ioas.id

    def map_there() -> int:
        buffer = DMABuffer(3 * PAGE)
        return by_id.map_memory(fd, number, raw.address_of(buffer), 3 * PAGE, IOVA + 2 * PAGE)

    assert in_child(map_there) == IOVA + 2 * PAGE
    assert [place for one in mock_ioas.mappings for place in one.ranges()] == [(IOVA, 2 * PAGE)]
    mock_device.set_dirty(IOVA, [1, 2, 4], count=5)
    assert pages_of(tracking, 0, 5) == [1, 2, 4]
    # And what has been unmapped behind this object's back is not.
    assert by_id.unmap(fd, number, IOVA, 2 * PAGE) == 2 * PAGE
    with pytest.raises(ValueError, match=f"nothing is mapped at {IOVA:#x},"):
        tracking.dirty_bitmap(IOVA, 5 * PAGE)
    assert pages_of(tracking, 2, 3) == [2, 4]


def test_the_first_hole_may_be_within_a_page(mock: MockIOMMUFD, mock_ioas: IOAS, tracking: HWPT) -> None:
    """The mock's own pages have 2 KiB, and mappings that the library did not make may end where one does."""
    memory, size = DMABuffer(PAGE), commands.PAGE_SIZE
    command = raw.struct(
        "iommu_ioas_map",
        ioas_id=mock_ioas.id,
        flags=uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_READABLE,
        user_va=raw.address_of(memory),
        length=size,
        iova=IOVA,
    )
    mock_ioas.huge_pages = True  # without, the kernel takes whole pages alone
    raw.ioctl(mock.fileno(), uapi.IOMMU_IOAS_MAP, command)
    assert not tracking.dirty_bitmap(IOVA, size, page_size=size)
    with pytest.raises(ValueError, match=f"nothing is mapped at {IOVA + size:#x},"):
        tracking.dirty_bitmap(IOVA, PAGE, page_size=size)
    assert mock_ioas.unmap_all() == size


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "hole"),
    [
        (0, (1 << 64) - 1, 1, 0),
        (IOVA, (1 << 64) - IOVA, PAGE, IOVA + PAGE),
        (1 << 63, 1 << 63, 1 << 63, 1 << 63),
    ],
)
def test_ranges_too_long_to_be_mapped(
    mock_ioas: IOAS, tracking: HWPT, iova: int, length: int, page_size: int, hole: int
) -> None:
    mock_ioas.map(DMABuffer(PAGE), iova=IOVA)
    with pytest.raises(ValueError, match=f"nothing is mapped at {hole:#x},"):
        tracking.dirty_bitmap(iova, length, page_size=page_size)


# What the kernel is asked, without a device or a page table


@pytest.mark.parametrize("length", [1, 2, 3, PAGE, 4 * PAGE, 5 * PAGE + 1, (1 << 64) - 1])
def test_the_question_for_holes_maps_nothing_wherever_they_are(ioas: IOAS, length: int) -> None:
    """Without a device an iova may be on any byte, where a copy could go to any."""
    last = (1 << 64) - 4 * PAGE
    with LeakCheck(ioas.iommufd):
        assert ioctls.ioas_first_hole(ioas._c, 0, length) == 0
    mapping = ioas.map(DMABuffer(4 * PAGE), iova=last)
    ioas.map(DMABuffer(4 * PAGE), iova=0)
    with LeakCheck(ioas.iommufd):
        found = ioctls.ioas_first_hole(ioas._c, 0, length)
        assert found == (None if length <= 4 * PAGE else 4 * PAGE)
        assert ioctls.ioas_first_hole(ioas._c, last, min(length, 4 * PAGE)) is None
        assert ioctls.ioas_first_hole(ioas._c, last - PAGE, PAGE + min(length, PAGE)) == last - PAGE
    mapping.unmap()
    assert ioas.unmap_all() == 4 * PAGE
