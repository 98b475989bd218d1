"""Large memory: maps in pieces with progress, cancelled ones, and page sizes."""

from __future__ import annotations

import mmap
import signal
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import IOAS, IOMMUFD, AlreadyMappedError, ClosedError, Device, DMABuffer, DMAMapping, IoctlError
from pyiommufd.kernel.memory import mapping_requests
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pages each."""
    monkeypatch.setattr(mapping_requests, "PROGRESS_BYTES", 2 * PAGE)


@pytest.fixture
def large() -> DMABuffer:
    """Memory of sixteen pages."""
    return DMABuffer(16 * PAGE)


class Calls:
    """A callback that notes its calls, and acts in one of them."""

    def __init__(self, at: int = 0, act: object = None) -> None:
        self.seen: list[tuple[int, int]] = []
        self.at, self.act = at, act

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))
        if len(self.seen) == self.at:
            assert callable(self.act)
            self.act()


def fail() -> None:
    """Raise what nothing else does."""
    raise ZeroDivisionError


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("where", [{}, {"iova": IOVA}, {"below": 1 << 32}])
def test_map_with_progress(
    device: Device, edu: EduDriver, ioas: IOAS, large: DMABuffer, arrives: Arrives, where: dict[str, Any]
) -> None:
    device.attach(ioas)
    calls = Calls()
    mapping = ioas.map(large, progress=calls, **where)
    done = [done for done, _ in calls.seen]
    assert {total for _, total in calls.seen} == {len(large)}
    assert done == sorted(set(done))
    assert done[-1] == len(large)
    assert len(done) in (8, 9)
    assert isinstance(mapping, DMAMapping)
    assert (mapping.iova, mapping.length) == (where.get("iova", mapping.iova), len(large))
    assert repr(mapping) == f"<DMAMapping {mapping.iova:#x}..{mapping.iova + len(large) - 1:#x}>"
    places = list(mapping.ranges())
    assert [iova - mapping.iova for iova, _ in places] == [0, *done[:-1]]
    large[:4] = b"here"
    edu.copy_in(mapping.iova, 4)
    edu.copy_out(mapping.iova + 15 * PAGE, 4)
    assert large[15 * PAGE : 15 * PAGE + 4] == b"here"
    copy = ioas.copy_from(ioas, mapping.iova, len(large))
    assert copy.length == len(large)
    copy.unmap()
    with mapping, pytest.raises(BufferError):
        large.close()
    assert not mapping.mapped
    assert ioas.unmap_all() == 0
    large.close()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("at", [1, 3, 8])
def test_cancelled_map_leaves_nothing(device: Device, ioas: IOAS, large: DMABuffer, at: int) -> None:
    device.attach(ioas)
    calls = Calls(at, fail)
    with pytest.raises(ZeroDivisionError) as caught:
        ioas.map(large, progress=calls)
    assert len(calls.seen) == at
    assert ioas.mappings == ()
    assert ioas.unmap_all() == 0
    large.close()  # though the exception is there
    assert caught.value.__traceback__ is not None


@pytest.mark.usefixtures("small_pieces")
def test_a_signal_between_pieces_cancels(ioas: IOAS, large: DMABuffer) -> None:
    calls = Calls(2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ioas.map(large, iova=IOVA, progress=calls)
    assert len(calls.seen) == 2
    assert ioas.unmap_all() == 0
    large.close()


@pytest.mark.usefixtures("small_pieces")
def test_refusal_of_a_later_piece(ioas: IOAS, large: DMABuffer) -> None:
    taken = ioas.map(DMABuffer(PAGE), iova=IOVA + 7 * PAGE)
    with pytest.raises(AlreadyMappedError, match=f"{taken.iova:#x}"):
        ioas.map(large, iova=IOVA, progress=Calls())
    assert ioas.mappings == (taken,)
    assert ioas.unmap_all() == PAGE
    large.close()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("where", [{}, {"below": 1 << 32}])
def test_another_is_quicker(device: Device, ioas: IOAS, large: DMABuffer, where: dict[str, Any]) -> None:
    device.attach(ioas)
    others: list[DMAMapping] = []

    def intrude() -> None:
        ((start, size),) = [place for found in ioas._table for place in found.ranges()]
        others.append(ioas.map(DMABuffer(PAGE), iova=start + size + 5 * PAGE))

    calls = Calls(1, intrude)
    mapping = ioas.map(large, progress=calls, **where)
    assert len(calls.seen) >= 10
    assert sum(size for _, size in mapping.ranges()) == len(large)
    (other,) = others
    assert set(ioas.mappings) == {mapping, other}
    assert ioas.unmap_all() == len(large) + PAGE


@pytest.mark.usefixtures("small_pieces")
def test_address_space_that_the_callback_closes(iommufd: IOMMUFD, large: DMABuffer) -> None:
    ioas = iommufd.alloc_ioas()
    with pytest.raises(ClosedError):
        ioas.map(large, progress=Calls(1, ioas.close))
    large.close()


def test_what_is_no_progress_or_no_place(ioas: IOAS, large: DMABuffer) -> None:
    async def later(done: int, total: int) -> None: ...

    for wrong in (1, later):
        with pytest.raises(TypeError):
            ioas.map(large, progress=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exclude"):
        ioas.map(large, iova=IOVA, below=1 << 32, progress=Calls())
    with pytest.raises(ValueError, match="page boundary"):
        ioas.map(large, iova=IOVA + 1, progress=Calls())
    with pytest.raises(ValueError, match="64 bits"):
        ioas.map(large, iova=1 << 64, progress=Calls())
    with pytest.raises(ValueError, match="page boundaries"):
        ioas.map(memoryview(large)[1:], progress=Calls())
    with pytest.raises(IoctlError, match="EOVERFLOW"):
        ioas.map(large, iova=(1 << 64) - PAGE, progress=Calls())
    with pytest.raises(IoctlError, match="ENOSPC"):
        ioas.map(large, below=8 * PAGE, progress=Calls())
    assert ioas.unmap_all() == 0
    large.close()


def test_page_sizes(device: Device, ioas: IOAS, large: DMABuffer) -> None:
    mapping = ioas.map(large)
    assert mapping.page_sizes == {}  # nobody has used them
    device.attach(ioas)
    assert mapping.page_sizes == {PAGE: 16 * PAGE}
    part = ioas.map(memoryview(large)[PAGE : 3 * PAGE], progress=lambda *_: None)
    assert part.page_sizes == {PAGE: 2 * PAGE}
    assert ioas.copy_from(ioas, part.iova, PAGE).page_sizes == {}
    part.unmap()
    assert part.page_sizes == {}
    with DMABuffer(PAGE, memfd=True) as shared, ioas.map_file(shared, PAGE) as by_file:
        assert by_file.page_sizes == {}


def test_sizes_of_huge_pages(device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    before = PAGES.read_text()
    PAGES.write_text("2")
    try:
        with DMABuffer(2 * HUGE, huge_page_size=HUGE) as huge, ioas.map(huge) as mapping:
            assert mapping.page_sizes == {HUGE: 2 * HUGE}
    finally:
        PAGES.write_text(before)
    with mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        with ioas.map(memory) as mapping:
            sizes = mapping.page_sizes
            assert sum(sizes.values()) == len(memory)
            assert sizes.get(HUGE, 0) >= HUGE
            assert list(sizes) in ([HUGE], [HUGE, PAGE])
