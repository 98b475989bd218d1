"""The state machine of the stress tests: address spaces, page tables and devices of the mock IOMMU, and a model."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant

from pyiommufd import (
    HWPT,
    IOAS,
    AlreadyAttachedError,
    AlreadyMappedError,
    DMABuffer,
    InUseError,
    IoctlError,
    NotFoundError,
    UnsupportedError,
)
from pyiommufd.kernel.pagetables.dirty_bitmap import DirtyBitmap
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.guest.stress.actions import IntRange, TupleList, action
from tests.guest.stress.model import Area, Page, Space, Table

PAGE = 4096
BASE = commands.APERTURE_START
PAGES = 24
"""Addresses that are used, in pages: so few that mappings often overlap."""
BUFFERS, BUFFER_PAGES = 3, 8
MOST_TABLES = 6

SPACES, DEVICES = IntRange(0, 2), IntRange(0, 1)
MEMORY = IntRange(0, BUFFERS * BUFFER_PAGES - 1)
START, COUNT = IntRange(0, PAGES - 1), IntRange(1, 4)
PLACE = IntRange(0, 2 * PAGES - 1)
"""A page, or where something is mapped."""
ANY, SWITCH = IntRange(0, 839), IntRange(0, 1)
"""One of those that there are then; off or on."""


def iova_of(page: int) -> int:
    return BASE + page * PAGE


class MockMachine(RuleBasedStateMachine):
    """A state machine of three address spaces and two mock devices, with a model that predicts each outcome."""

    ran: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.iommufd = MockIOMMUFD()
        self.buffers = [DMABuffer(BUFFER_PAGES * PAGE, memfd=True) for _ in range(BUFFERS)]
        self.spaces: list[tuple[IOAS, Space]] = []
        self.devices: list[MockDevice] = []
        self.on: dict[MockDevice, tuple[Space, int | None]] = {}
        self.hwpts: dict[int, tuple[HWPT, Space]] = {}
        self.made = 0

    def create_objects(self) -> None:
        for _ in range(3):
            self.spaces.append((self.new_space(), Space()))
        for _ in range(2):
            device = self.iommufd.mock_device(self.spaces[0][0])
            self.devices.append(device)
            self.on[device] = (self.spaces[0][1], None)

    def new_space(self) -> IOAS:
        ioas = self.iommufd.alloc_ioas()
        ioas.huge_pages = False  # a mark is then for one page
        return ioas

    def count(self, name: str) -> None:
        type(self).ran[name] += 1

    def space(self, number: int) -> tuple[IOAS, Space]:
        return self.spaces[number % len(self.spaces)]

    def piece(self, number: int, count: int) -> tuple[DMABuffer, int, tuple[Page, ...]]:
        """Some pages of a buffer: which, from which page on, and their names in the model."""
        which, first = number % BUFFERS, number // BUFFERS % (BUFFER_PAGES - count + 1)
        return self.buffers[which], first, tuple((which, first + n) for n in range(count))

    def start_page(self, space: Space, number: int) -> int:
        """A page: any, or half the time one where a mapping begins."""
        begins = sorted(area.start for area in space.areas)
        return begins[number % len(begins)] if number >= PAGES and begins else number % PAGES

    def end_page(self, space: Space, number: int) -> int:
        """A page: any, or half the time the one behind a mapping."""
        ends = sorted(area.end for area in space.areas if area.end < PAGES)
        return ends[number % len(ends)] if number >= PAGES and ends else number % PAGES

    # Mappings

    @action(where=SPACES, memory=MEMORY, start=PLACE, count=COUNT)
    def map(self, where: int, memory: int, start: int, count: int) -> None:
        self.count("map")
        ioas, space = self.space(where)
        start = self.end_page(space, start)
        buffer, first, pages = self.piece(memory, count)
        view = memoryview(buffer)[first * PAGE : (first + count) * PAGE]
        if space.map(Area(start, pages)):
            assert ioas.map(view, iova=iova_of(start)).length == count * PAGE
        else:
            with pytest.raises(AlreadyMappedError):
                ioas.map(view, iova=iova_of(start))

    @action(where=SPACES, memory=MEMORY, start=PLACE, count=COUNT)
    def map_file(self, where: int, memory: int, start: int, count: int) -> None:
        self.count("map_file")
        ioas, space = self.space(where)
        start = self.end_page(space, start)
        buffer, first, pages = self.piece(memory, count)
        if space.map(Area(start, pages)):
            ioas.map_file(buffer, count * PAGE, start=first * PAGE, iova=iova_of(start))
        else:
            with pytest.raises(AlreadyMappedError):
                ioas.map_file(buffer, count * PAGE, start=first * PAGE, iova=iova_of(start))

    @action(where=SPACES, memory=MEMORY, places=TupleList(4, (START, IntRange(1, 2))))
    def map_many(self, where: int, memory: int, places: list[tuple[int, int]]) -> None:
        self.count("map_many")
        ioas, space = self.space(where)
        buffer, first, _ = self.piece(memory, 2)
        pieces = [(first * PAGE, count * PAGE, iova_of(start)) for start, count in places]
        areas: list[Area] = []
        for start, count in places:
            area = Area(start, self.piece(memory, 2)[2][:count])
            if not space.map(area):
                for one in areas:
                    space.remove(one)
                with pytest.raises(AlreadyMappedError):
                    ioas.map_many(buffer, pieces)
                return
            areas.append(area)
        assert len(ioas.map_many(buffer, pieces)) == len(places)

    @action(where=SPACES, start=PLACE, count=IntRange(1, 8))
    def unmap(self, where: int, start: int, count: int) -> None:
        self.count("unmap")
        ioas, space = self.space(where)
        start = self.start_page(space, start)
        done = space.unmap(start, count)
        if done is None:
            with pytest.raises(NotFoundError):
                ioas.unmap(iova_of(start), count * PAGE)
        else:
            assert ioas.unmap(iova_of(start), count * PAGE) == done * PAGE

    @action(which=ANY)
    def unmap_object(self, which: int) -> None:
        mappings = [(one, space) for ioas, space in self.spaces for one in ioas.mappings]
        if not mappings:
            return
        self.count("unmap of a mapping")
        mapping, space = mappings[which % len(mappings)]
        places = {(iova - BASE) // PAGE: size // PAGE for iova, size in mapping.ranges()}
        for area in list(space.areas):
            if area.start in places:
                assert len(area.memory) == places[area.start]
                space.remove(area)
        mapping.unmap()
        assert not mapping.mapped

    @action(to=SPACES, of=SPACES, start=PLACE, count=COUNT, at=START)
    def copy(self, to: int, of: int, start: int, count: int, at: int) -> None:
        self.count("copy")
        ioas, space = self.space(to)
        source, source_space = self.space(of)
        start = self.start_page(source_space, start)
        wrong = space.copy(source_space, start, count, at)
        arguments: dict[str, Any] = {"iova": iova_of(start), "length": count * PAGE, "dst_iova": iova_of(at)}
        if wrong is None:
            assert ioas.copy_from(source, **arguments).iova == iova_of(at)
        else:
            with pytest.raises(NotFoundError if wrong == "hole" else AlreadyMappedError):
                ioas.copy_from(source, **arguments)

    @action(which=SPACES)
    def destroy(self, which: int) -> None:
        self.count("destroy")
        ioas, space = self.space(which)
        if any(on is space for on, _ in self.on.values()):
            with pytest.raises(InUseError):
                ioas.close()
            assert not ioas.closed
            return
        ioas.close()
        self.hwpts = {number: made for number, made in self.hwpts.items() if made[1] is not space}
        self.spaces[which % len(self.spaces)] = (self.new_space(), Space())

    # Page tables

    @action(where=SPACES, device=DEVICES, tracks=IntRange(0, 3))
    def alloc_hwpt(self, where: int, device: int, tracks: int) -> None:
        if len(self.hwpts) == MOST_TABLES:
            return
        self.count("alloc_hwpt")
        ioas, space = self.space(where)
        self.made += 1
        hwpt = self.devices[device].alloc_hwpt(ioas, dirty_tracking=tracks > 0)
        space.tables[self.made] = Table(tracks > 0)
        self.hwpts[self.made] = (hwpt, space)

    @action(which=ANY)
    def close_hwpt(self, which: int) -> None:
        if not self.hwpts:
            return
        self.count("close of a page table")
        number = sorted(self.hwpts)[which % len(self.hwpts)]
        hwpt, space = self.hwpts[number]
        if any(table == number for _, table in self.on.values()):
            with pytest.raises(InUseError):
                hwpt.close()
            return
        hwpt.close()
        del self.hwpts[number], space.tables[number]

    def page_table(self, which: int) -> tuple[IOAS | HWPT, Space, int | None]:
        tables: list[tuple[IOAS | HWPT, Space, int | None]] = [(ioas, space, None) for ioas, space in self.spaces]
        tables += [(hwpt, space, number) for number, (hwpt, space) in sorted(self.hwpts.items())]
        return tables[which % len(tables)]

    @action(which=DEVICES, table=ANY)
    def attach(self, which: int, table: int) -> None:
        self.count("attach")
        device = self.devices[which]
        page_table, space, number = self.page_table(table)
        if device in self.on:
            with pytest.raises(AlreadyAttachedError):
                device.attach(page_table)
            return
        device.attach(page_table)
        self.on[device] = (space, number)

    @action(which=DEVICES, table=ANY)
    def replace(self, which: int, table: int) -> None:
        self.count("replace")
        device = self.devices[which]
        page_table, space, number = self.page_table(table)
        if device not in self.on:
            with pytest.raises(ValueError, match="not attached"):
                device.replace(page_table)
            return
        device.replace(page_table)
        self.on[device] = (space, number)

    @action(which=DEVICES)
    def detach(self, which: int) -> None:
        self.count("detach")
        device = self.devices[which]
        changed = device.detach().devices
        assert bool(changed) == (self.on.pop(device, None) is not None)

    # Dirty pages

    @action(which=ANY, on=SWITCH)
    def track(self, which: int, on: int) -> None:
        if not self.hwpts:
            return
        self.count("dirty tracking")
        number = sorted(self.hwpts)[which % len(self.hwpts)]
        hwpt, space = self.hwpts[number]
        table = space.tables[number]
        if not table.tracks:
            with pytest.raises(UnsupportedError):
                hwpt.set_dirty_tracking(bool(on))
            return
        hwpt.set_dirty_tracking(bool(on))
        if on:
            table.dirty.clear()
        table.on = bool(on)

    @action(which=DEVICES, numbers=TupleList(6, (START,)))
    def write(self, which: int, numbers: list[tuple[int]]) -> None:
        if not self.on:
            return
        self.count("write")
        pages = {page for (page,) in numbers}
        device = [one for one in self.devices if one in self.on][which % len(self.on)]
        space, number = self.on[device]
        table = None if number is None else space.tables[number]
        if table is None or not table.on:
            with pytest.raises(IoctlError):
                device.set_dirty(BASE, pages, count=PAGES)
            return
        device.set_dirty(BASE, pages, count=PAGES)
        space.write(table, pages)

    @action(which=ANY, start=PLACE, count=COUNT, clear=SWITCH)
    def read_dirty(self, which: int, start: int, count: int, clear: int) -> None:
        tracking = [(number, made) for number, made in sorted(self.hwpts.items()) if made[1].tables[number].tracks]
        if not tracking:
            return
        self.count("dirty bitmap")
        number, (hwpt, space) = tracking[which % len(tracking)]
        table = space.tables[number]
        start = self.start_page(space, start)
        if space.memory(start, count) is None:
            with pytest.raises(ValueError, match="not mapped completely"):
                hwpt.dirty_bitmap(iova_of(start), count * PAGE, clear=bool(clear))
            if not space.areas:
                return
            area = space.areas[start % len(space.areas)]
            start, count = area.start, len(area.memory)
        wanted = table.dirty & set(range(start, start + count))
        bitmap = hwpt.dirty_bitmap(iova_of(start), count * PAGE, clear=bool(clear))
        assert self.pages(bitmap) == wanted
        if clear:
            table.dirty -= wanted

    def pages(self, bitmap: DirtyBitmap) -> set[int]:
        return {page for page in range(PAGES + 8) if iova_of(page) in bitmap}

    # Invariants

    @invariant()
    def the_record_is_the_model(self) -> None:
        for ioas, space in self.spaces:
            places = sorted(place for mapping in ioas.mappings for place in mapping.ranges())
            assert places == sorted((iova_of(area.start), len(area.memory) * PAGE) for area in space.areas)

    @invariant()
    def devices_reach_what_is_mapped_and_nothing_else(self) -> None:
        for device, (space, _) in self.on.items():
            for area in space.areas:
                which, page = area.memory[0]
                memory = memoryview(self.buffers[which])[page * PAGE : (page + len(area.memory)) * PAGE]
                assert device.reaches(memory, iova_of(area.start)), f"{device} at page {area.start}"
            mapped = {page for area in space.areas for page in range(area.start, area.end)}
            free = next((page for page in range(PAGES) if page not in mapped), None)
            if free is not None:
                assert not device.reaches(memoryview(self.buffers[0])[:PAGE], iova_of(free))

    def teardown(self) -> None:
        self.iommufd.close()
