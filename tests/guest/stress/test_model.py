"""Address spaces, page tables and devices in random order, against a model and the mock IOMMU's own page check.

PYIOMMUFD_STRESS_STEPS says how many steps there are, PYIOMMUFD_STRESS_SEED which: what fails is printed as a program,
and comes again with the same seed.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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
from pyiommufd.kernel.dirty_bitmap import DirtyBitmap
from pyiommufd.testing.leaks import LeakCheck
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.guest.stress.model import Area, Page, Space, Table

PAGE = 4096
BASE = commands.APERTURE_START
PAGES = 24
"""Addresses that are used, in pages: so few that mappings are often in each other's way."""
BUFFER_PAGES = 8
STEPS = int(os.environ.get("PYIOMMUFD_STRESS_STEPS", "2000"))
SEED = int(os.environ.get("PYIOMMUFD_STRESS_SEED", "20261122"))
STEPS_A_RUN = 100
# PYIOMMUFD_STRESS_SHRINK: look for the shortest program that fails, which takes many minutes.
PHASES = tuple(Phase) if os.environ.get("PYIOMMUFD_STRESS_SHRINK") else (Phase.generate,)

starts = st.integers(0, PAGES - 1)
counts = st.integers(1, 4)
chosen = st.integers(0, 1 << 16)


def iova_of(page: int) -> int:
    return BASE + page * PAGE


class Machine(RuleBasedStateMachine):
    """Three address spaces and two devices; what is made of them is closed again."""

    ran: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.iommufd = MockIOMMUFD()
        self.buffers = [DMABuffer(BUFFER_PAGES * PAGE, memfd=True) for _ in range(3)]
        self.spaces: list[tuple[IOAS, Space]] = []
        self.devices: list[MockDevice] = []
        self.on: dict[MockDevice, tuple[Space, int | None]] = {}
        self.hwpts: dict[int, tuple[HWPT, Space]] = {}
        self.made = 0

    @initialize()
    def begin(self) -> None:
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
        which, first = number % len(self.buffers), number // 7 % (BUFFER_PAGES - count + 1)
        return self.buffers[which], first, tuple((which, first + n) for n in range(count))

    # Memory

    @rule(where=chosen, memory=chosen, start=starts, count=counts)
    def map(self, where: int, memory: int, start: int, count: int) -> None:
        self.count("map")
        ioas, space = self.space(where)
        buffer, first, pages = self.piece(memory, count)
        view = memoryview(buffer)[first * PAGE : (first + count) * PAGE]
        if space.map(Area(start, pages)):
            assert ioas.map(view, iova=iova_of(start)).length == count * PAGE
        else:
            with pytest.raises(AlreadyMappedError):
                ioas.map(view, iova=iova_of(start))

    @rule(where=chosen, memory=chosen, start=starts, count=counts)
    def map_file(self, where: int, memory: int, start: int, count: int) -> None:
        self.count("map_file")
        ioas, space = self.space(where)
        buffer, first, pages = self.piece(memory, count)
        if space.map(Area(start, pages)):
            ioas.map_file(buffer, count * PAGE, start=first * PAGE, iova=iova_of(start))
        else:
            with pytest.raises(AlreadyMappedError):
                ioas.map_file(buffer, count * PAGE, start=first * PAGE, iova=iova_of(start))

    @rule(where=chosen, memory=chosen, places=st.lists(st.tuples(starts, st.integers(1, 2)), min_size=1, max_size=4))
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

    @rule(where=chosen, start=starts, count=st.integers(1, 8))
    def unmap(self, where: int, start: int, count: int) -> None:
        self.count("unmap")
        ioas, space = self.space(where)
        done = space.unmap(start, count)
        if done is None:
            with pytest.raises(NotFoundError):
                ioas.unmap(iova_of(start), count * PAGE)
        else:
            assert ioas.unmap(iova_of(start), count * PAGE) == done * PAGE

    @precondition(lambda self: any(space.areas for _, space in self.spaces))
    @rule(which=chosen)
    def unmap_object(self, which: int) -> None:
        self.count("unmap of a mapping")
        mappings = [(one, space) for ioas, space in self.spaces for one in ioas.mappings]
        mapping, space = mappings[which % len(mappings)]
        places = {(iova - BASE) // PAGE: size // PAGE for iova, size in mapping.ranges()}
        for area in list(space.areas):
            if area.start in places:
                assert len(area.memory) == places[area.start]
                space.remove(area)
        mapping.unmap()
        assert not mapping.mapped

    @rule(to=chosen, of=chosen, start=starts, count=counts, at=starts)
    def copy(self, to: int, of: int, start: int, count: int, at: int) -> None:
        self.count("copy")
        ioas, space = self.space(to)
        source, source_space = self.space(of)
        wrong = space.copy(source_space, start, count, at)
        arguments: dict[str, Any] = {"iova": iova_of(start), "length": count * PAGE, "dst_iova": iova_of(at)}
        if wrong is None:
            assert ioas.copy_from(source, **arguments).iova == iova_of(at)
        else:
            with pytest.raises(NotFoundError if wrong == "hole" else AlreadyMappedError):
                ioas.copy_from(source, **arguments)

    @rule(which=chosen)
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

    @precondition(lambda self: len(self.hwpts) < 4)
    @rule(where=chosen, device=chosen, tracks=st.sampled_from([True, True, True, False]))
    def alloc_hwpt(self, where: int, device: int, tracks: bool) -> None:
        self.count("alloc_hwpt")
        ioas, space = self.space(where)
        self.made += 1
        hwpt = self.devices[device % 2].alloc_hwpt(ioas, dirty_tracking=tracks)
        space.tables[self.made] = Table(tracks)
        self.hwpts[self.made] = (hwpt, space)

    @precondition(lambda self: self.hwpts)
    @rule(which=chosen)
    def close_hwpt(self, which: int) -> None:
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

    @rule(which=chosen, table=chosen)
    def attach(self, which: int, table: int) -> None:
        self.count("attach")
        device = self.devices[which % 2]
        page_table, space, number = self.page_table(table)
        if device in self.on:
            with pytest.raises(AlreadyAttachedError):
                device.attach(page_table)
            return
        device.attach(page_table)
        self.on[device] = (space, number)

    @rule(which=chosen, table=chosen)
    def replace(self, which: int, table: int) -> None:
        self.count("replace")
        device = self.devices[which % 2]
        page_table, space, number = self.page_table(table)
        if device not in self.on:
            with pytest.raises(ValueError, match="not attached"):
                device.replace(page_table)
            return
        device.replace(page_table)
        self.on[device] = (space, number)

    @rule(which=chosen)
    def detach(self, which: int) -> None:
        self.count("detach")
        device = self.devices[which % 2]
        changed = device.detach().devices
        assert bool(changed) == (self.on.pop(device, None) is not None)

    # Dirty pages

    @precondition(lambda self: self.hwpts)
    @rule(which=chosen, on=st.booleans())
    def track(self, which: int, on: bool) -> None:
        self.count("dirty tracking")
        number = sorted(self.hwpts)[which % len(self.hwpts)]
        hwpt, space = self.hwpts[number]
        table = space.tables[number]
        if not table.tracks:
            with pytest.raises(UnsupportedError):
                hwpt.set_dirty_tracking(on)
            return
        hwpt.set_dirty_tracking(on)
        if on:
            table.dirty.clear()
        table.on = on

    @precondition(lambda self: self.on)
    @rule(which=chosen, pages=st.sets(starts, min_size=1, max_size=6))
    def write(self, which: int, pages: set[int]) -> None:
        self.count("write")
        device = [one for one in self.devices if one in self.on][which % len(self.on)]
        space, number = self.on[device]
        table = None if number is None else space.tables[number]
        if table is None or not table.on:
            with pytest.raises(IoctlError):
                device.set_dirty(BASE, pages, count=PAGES)
            return
        device.set_dirty(BASE, pages, count=PAGES)
        space.write(table, pages)

    @precondition(lambda self: any(t.tracks for _, space in self.spaces for t in space.tables.values()))
    @rule(which=chosen, start=starts, count=counts, clear=st.booleans())
    def read_dirty(self, which: int, start: int, count: int, clear: bool) -> None:
        self.count("dirty bitmap")
        tracking = [(number, made) for number, made in sorted(self.hwpts.items()) if made[1].tables[number].tracks]
        number, (hwpt, space) = tracking[which % len(tracking)]
        table = space.tables[number]
        if space.memory(start, count) is None:
            # From the first hole on the kernel reports nothing, without a word: what is mapped is asked for.
            if not space.areas:
                return
            area = space.areas[start % len(space.areas)]
            start, count = area.start, len(area.memory)
        wanted = table.dirty & set(range(start, start + count))
        bitmap = hwpt.dirty_bitmap(iova_of(start), count * PAGE, clear=clear)
        assert self.pages(bitmap) == wanted
        if clear:
            table.dirty -= wanted

    def pages(self, bitmap: DirtyBitmap) -> set[int]:
        return {page for page in range(PAGES + 8) if iova_of(page) in bitmap}

    # What holds after each step

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


class Forgetful(Machine):
    """A model that is wrong: it takes a copy of two mappings for one."""

    ran: ClassVar[Counter[str]] = Counter()

    @rule(to=chosen, of=chosen, start=starts, at=starts)
    def copy(self, to: int, of: int, start: int, at: int, count: int = 4) -> None:
        super().copy(to, of, start, count, at)
        space = self.space(to)[1]
        found = space.touching(at, count)
        if len(found) > 1 and sum(len(area.memory) for area in found) == count:
            for area in found:
                space.areas.remove(area)
            space.areas.append(Area(at, tuple(page for area in found for page in area.memory)))


def run(machine: type[Machine], steps: int, number: int) -> None:
    machine.ran.clear()
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=max(1, steps // STEPS_A_RUN),
            stateful_step_count=STEPS_A_RUN,
            phases=PHASES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_orders_agree_with_the_model() -> None:
    check = LeakCheck()
    done, round_number = Counter[str](), 0
    while done.total() < STEPS or min(done.values()) < STEPS // 40:
        run(Machine, min(STEPS, 1000), SEED + round_number)
        done += Machine.ran
        round_number += 1
    print(f"{done.total()} steps: " + ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    assert len(done) == 15
    gc.collect()  # buffers, and memoryviews of them in the frames of exceptions
    check.check()


def test_a_wrong_model_is_caught_and_caught_again() -> None:
    failures = []
    for _ in range(2):
        with pytest.raises(AssertionError) as caught:
            run(Forgetful, 4000, SEED)
        text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        failures.append([line.strip() for line in text.splitlines() if line.strip().startswith("state.")])
    # The program that fails is printed, and is the same one.
    assert failures[0] == failures[1] != []
