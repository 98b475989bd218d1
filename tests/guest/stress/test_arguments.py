"""Wrong arguments, generated: every public call refuses them by one of its own exceptions, and leaves nothing behind.

Not said here is which: the tests of each class do. An argument that happens to be good is used, and what that made is
undone. Each of the nine groups of calls gets 10,000 examples, or as many as a sample has (tests/sweeps.py); under
emulation each costs milliseconds, and all of them take an hour. PYIOMMUFD_STRESS_EXAMPLES says another number.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Device,
    DeviceFile,
    DMABuffer,
    HostDevice,
    Monitor,
    find_device,
    find_group,
    list_devices,
    plan_claim,
)
from pyiommufd.testing.checks.leaks import LeakCheck, kernel_fds
from pyiommufd.testing.mock import MockIOMMUFD, commands
from tests.guest.dma import IOVA
from tests.guest.stress.hammer import PAGE, TEXTS, Hammer, Values, integers, pick


def elsewhere(from_fd: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Only the fds that are nobody's: one of this test's own objects would be taken from it."""

    def call(value: Any) -> Any:
        try:
            if operator.index(value) in kernel_fds():
                raise ValueError(value)
        except TypeError:
            pass
        return from_fd(value)

    return call


@pytest.mark.long
def test_iommufd(hammer: Hammer, iommufd: IOMMUFD, first: HostDevice, fds: list[int]) -> None:
    junk = hammer.junk
    with LeakCheck(iommufd):
        hammer(IOMMUFD, 2000, hammer.mix(b"/dev/iommu", Path("/dev/iommu")), undo=lambda made: made.close())
        hammer(elsewhere(IOMMUFD.from_fd), 2500, st.one_of(junk, pick(fds)))
        hammer(lambda value: setattr(iommufd, "rlimit_mode", value), 1500, junk)
        hammer(iommufd.alloc_ioas, 500, junk)
        hammer(lambda value: setattr(iommufd, "vfio_ioas", value), 500, junk)
        hammer(iommufd.change_process, 50, junk)
        hammer(iommufd.bind, 3000, junk, undo=lambda made: made.close(), token=junk)
        hammer(iommufd.bind, 500, pick([first.name]), token=junk, undo=lambda made: made.close())
        # What is printed and compared is not refused, and does not fail.
        hammer(lambda value: (iommufd == value, hash(iommufd), repr(iommufd)), 100, pick(TEXTS))
        assert iommufd.objects == ()
    assert hammer.examples >= hammer.wanted * 9 // 10
    assert hammer.accepted > 0


@pytest.mark.long
def test_device_file(hammer: Hammer, first: HostDevice, fds: list[int]) -> None:
    with LeakCheck():
        # Some of the names and devices among it are good: the file has to be closed then.
        hammer(DeviceFile, 6000, hammer.junk, undo=lambda made: made.close())
        hammer(elsewhere(DeviceFile.from_fd), 4000, st.one_of(hammer.junk, pick(fds)))
        hammer(DeviceFile, 50, hammer.mix(first, first.name, first.sys_path), undo=lambda made: made.close())
    assert hammer.examples >= hammer.wanted * 9 // 10


def pieces(hammer: Hammer) -> Values:
    """What `IOAS.map_many` takes, right in form at least."""
    place = st.integers(-1, 5).map(lambda page: page * PAGE)
    part = st.tuples(hammer.mix(strategy=place), hammer.mix(strategy=place), hammer.mix(None, strategy=integers()))
    return st.lists(part, max_size=4)


@pytest.mark.long
@pytest.mark.parametrize("attached", [False, True])
def test_ioas(
    hammer: Hammer, iommufd: IOMMUFD, device: Device, ioas: IOAS, memories: list[Any], attached: bool
) -> None:
    good = memories[-2]
    source = iommufd.alloc_ioas()
    held = DMABuffer(4 * PAGE, memfd=True)
    source.map(held, iova=IOVA)
    if attached:
        device.attach(ioas)
    places = st.one_of(st.none(), integers(), st.integers(0, 100).map(lambda page: page * PAGE), hammer.junk)
    memory = st.one_of(pick(memories), hammer.junk)
    flag = st.one_of(st.booleans(), hammer.junk)
    access = {"readable": flag, "writeable": flag}
    check = LeakCheck(iommufd)

    def unmap(made: Any) -> None:
        assert ioas.mappings == (made,)
        size = made.length
        made.unmap()
        assert size > 0

    hammer(ioas.map, 3000, memory, undo=unmap, iova=places, below=places, **access)
    hammer(ioas.map, 1000, st.just(good), undo=unmap, iova=places)
    hammer(ioas.map, 1000, st.just(good), undo=unmap, below=places)
    hammer(ioas.map_many, 1500, memory, st.one_of(hammer.junk, pieces(hammer)), undo=unmap, **access)
    files = st.one_of(hammer.junk, pick([held, 987654]))
    hammer(ioas.map_file, 1000, files, places, undo=unmap, start=places, iova=places, below=places, **access)
    hammer(ioas.physical_address, 500, places, places)
    hammer(ioas.copy_from, 1000, hammer.mix(source), places, places, undo=unmap, dst_iova=places, **access)
    hammer(ioas.copy_from, 500, st.just(source), st.just(IOVA), st.just(4 * PAGE), undo=unmap, dst_iova=places)
    assert ioas.unmap_all() == 0
    # Nothing is mapped: what an unmap answers is an error, or no bytes.
    hammer(ioas.unmap, 1500, places, places, undo=lambda done: pytest.fail(f"{done} bytes") if done else None)
    ranges = st.one_of(hammer.junk, st.lists(st.one_of(hammer.junk, st.tuples(places, places)), max_size=3))
    hammer(ioas.allow_iovas, 1000, ranges, undo=lambda _: ioas.allow_iovas([]))
    hammer(lambda value: setattr(ioas, "huge_pages", value), 300, hammer.junk)
    ioas.huge_pages = True
    for call in (ioas.unmap_all, ioas.iova_ranges, ioas.close):
        hammer(call, 50, hammer.junk)
    assert hammer.examples >= hammer.wanted * 9 // 10
    assert hammer.accepted > min(20, hammer.wanted // 20)
    # Nothing is left in the record, in the kernel, or of the memory that was passed.
    assert ioas.mappings == ()
    assert ioas.unmap_all() == 0
    assert [(mapping.iova, mapping.length) for mapping in source.mappings] == [(IOVA, 4 * PAGE)]  # type: ignore[union-attr]
    assert source.unmap_all() == 4 * PAGE
    held.close()
    check.check()
    # Where everything can be mapped again: no address was lost.
    with DMABuffer(PAGE) as buffer, ioas.map(buffer, iova=IOVA):
        pass


def test_device(hammer: Hammer, iommufd: IOMMUFD, device: Device, peer_device: Device, ioas: IOAS) -> None:
    tables = hammer.mix(ioas)
    pasids = st.one_of(st.none(), integers(), st.integers(0, 1 << 20), hammer.junk)
    check = LeakCheck(iommufd)

    def detach(_: object) -> None:
        for pasid in device.page_tables:
            device.detach(pasid)

    hammer(device.attach, 3000, tables, pasids, undo=detach)
    hammer(device.preview_attach, 1500, tables, pasids)
    hammer(device.detach, 1500, pasids)
    hammer(device.region, 2000, st.one_of(integers(), hammer.junk))
    hammer(device.page_table_for, 500, st.one_of(st.none(), integers()))
    hammer(lambda value: setattr(device, "bus_master", value), 500, hammer.junk)
    device.attach(ioas)
    hammer(device.replace, 1500, tables, pasids)
    hammer(device.attach, 500, tables)
    assert device.page_tables == {None: ioas}
    assert hammer.examples >= hammer.wanted * 9 // 10
    assert peer_device.page_table is None
    detach(None)
    check.check()
    ioas.close()


@pytest.mark.long
def test_page_tables(hammer: Hammer, iommufd: IOMMUFD, device: Device, ioas: IOAS) -> None:
    ioas.map(DMABuffer(4 * PAGE), iova=IOVA)
    check = LeakCheck(iommufd)
    flags = dict.fromkeys(("nest_parent", "dirty_tracking", "pasid"), st.one_of(st.booleans(), hammer.junk))
    driver = {"data_type": st.one_of(st.just(0), integers(), hammer.junk), "data": hammer.junk}
    hammer(device.alloc_hwpt, 3500, hammer.mix(ioas), undo=lambda made: made.close(), **flags, **driver)
    hammer(device.alloc_hwpt, 500, st.just(ioas), undo=lambda made: made.close(), pasid=st.booleans())
    hammer(device.hw_info, 1500, st.one_of(st.none(), integers(), hammer.junk))
    places = st.one_of(integers(), st.integers(0, 100).map(lambda page: page * PAGE), hammer.junk)
    with MockIOMMUFD() as mock:
        tracked = mock.alloc_ioas()
        tracked.map(DMABuffer(64 * PAGE), iova=commands.APERTURE_START)
        tracking = mock.mock_device(tracked).alloc_hwpt(tracked, dirty_tracking=True)
        near = places | st.integers(-1, 65).map(lambda page: commands.APERTURE_START + page * PAGE)
        hammer(tracking.dirty_bitmap, 1500, near, places, page_size=pick([PAGE, 1, 2 * PAGE, 1 << 30]) | hammer.junk)
    with device.alloc_hwpt(ioas) as hwpt:
        sizes = st.one_of(integers(), st.sampled_from([0, 3, PAGE, 1 << 30]), hammer.junk)
        hammer(hwpt.dirty_bitmap, 2000, places, places, page_size=sizes, clear=hammer.junk)
        hammer(hwpt.set_dirty_tracking, 500, hammer.junk)
        hammer(hwpt.close, 50, hammer.junk)
    assert hammer.examples >= hammer.wanted * 9 // 10
    assert hammer.accepted > min(10, hammer.wanted // 30)
    assert ioas.hwpts == ()
    check.check()


@pytest.mark.long
def test_registers(hammer: Hammer, device: Device) -> None:
    """Behind the registers that do something, so that what is accepted changes nothing."""
    region, config = device.region(0), device.config
    quiet = st.integers(0x8000, 0x10000)
    offsets = st.one_of(integers(), hammer.junk, st.integers(-8, 0x100010))
    check = LeakCheck(device.iommufd)
    hammer(region.read, 1500, offsets, st.one_of(st.integers(-1, 64), hammer.junk))
    hammer(config.read, 500, st.one_of(st.integers(-8, 5000), hammer.junk), st.integers(-1, 300))
    hammer(
        region.write,
        1500,
        st.one_of(quiet, hammer.junk.filter(lambda v: not isinstance(v, int) or v > 0x8000)),
        hammer.junk,
    )
    hammer(region.map, 1000, offsets, hammer.mix(PAGE), undo=lambda made: made.close())
    hammer(device.region(7).map, 200, offsets, hammer.junk)
    with region.map(0x8000) as window:
        for width in (8, 16, 32, 64):
            hammer(getattr(window, f"read{width}"), 700, offsets)
            hammer(getattr(window, f"write{width}"), 700, offsets, st.one_of(integers(), hammer.junk))
        hammer(window.read, 700, offsets, st.one_of(st.integers(-1, 64), hammer.junk))
        hammer(window.readinto, 700, offsets, hammer.junk)
        hammer(window.write, 700, offsets, hammer.junk)
        assert window.read32(0) == window.read32(0)
    with region.map() as window:
        assert window.read32(0) & 0xFF == 0xED
    assert hammer.examples >= hammer.wanted * 9 // 10
    check.check()


def test_buffer(hammer: Hammer) -> None:
    sizes = st.one_of(st.integers(-10, 1 << 20), integers(), hammer.junk)
    huge = st.one_of(st.none(), pick([2 << 20, 1 << 30, 8192]), integers(), hammer.junk)
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def close(made: DMABuffer) -> None:
        assert len(made) % PAGE == 0
        made.close()

    hammer(DMABuffer, 5000, sizes, undo=close)
    hammer(DMABuffer, 5000, sizes, undo=close, huge_page_size=huge, memfd=st.one_of(st.booleans(), st.none()))
    assert hammer.examples >= hammer.wanted * 9 // 10
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.long
def test_host(hammer: Hammer, first: HostDevice) -> None:
    check = LeakCheck()
    before = first.refreshed()
    hammer(find_device, 4000, hammer.junk)
    hammer(find_group, 2000, st.one_of(integers(), hammer.junk))
    hammer(list_devices, 500, hammer.junk.filter(lambda value: value is not None))
    hammer(plan_claim, 1500, st.one_of(hammer.junk, st.lists(hammer.junk, min_size=1, max_size=2)))
    hammer(plan_claim, 100, st.just(first.name), force=hammer.junk)
    hammer(Monitor, 1000, hammer.junk, undo=lambda made: made.close())
    with Monitor() as monitor:
        waits = st.one_of(st.just(0), st.floats(max_value=0), st.integers(max_value=0), hammer.junk)
        # Not those that wait: None, and what is more than a moment.
        hammer(monitor.poll, 1000, waits.filter(lambda value: not _long(value)))
    assert hammer.examples >= hammer.wanted * 9 // 10
    after = first.refreshed()
    assert (after.driver, after.group_id) == (before.driver, before.group_id)
    check.check()


def _long(value: object) -> bool:
    if value is None:
        return True
    try:
        return bool(value > 0.001)  # type: ignore[operator]
    except (TypeError, ValueError):
        return False


def test_numbers_too_large_to_wait_for_are_no_error() -> None:
    """What `poll` makes of them, without the wait: there is an event already."""
    with Monitor() as monitor:
        Path("/sys/bus/pci/devices/0000:00:00.0/uevent").write_text("change")
        large: list[Any] = [1e300, float("inf"), 10**400, np.uint64(2**64 - 1)]
        for seconds in large:
            event = monitor.poll(seconds)
            assert event is not None
            assert event.action == "change"
            Path("/sys/bus/pci/devices/0000:00:00.0/uevent").write_text("change")
        for wrong in (-1, -0.5, float("nan"), -(10**400)):
            with pytest.raises(ValueError, match="seconds"):
                monitor.poll(wrong)
