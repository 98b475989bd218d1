"""Wrong arguments, generated: every public call refuses them by one of its own exceptions, and leaves nothing behind.

Not said here is which: the tests of each class do. An argument that happens to be good is used, and what that made is
undone. Ten thousand examples in all, the same ones in every run; under emulation each costs milliseconds.
PYIOMMUFD_STRESS_EXAMPLES says how many each of the eight groups of calls gets.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import operator
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    Device,
    DeviceFile,
    DMABuffer,
    HostDevice,
    IOMMUFDError,
    Monitor,
    find_device,
    find_group,
    list_devices,
    plan_claim,
)
from pyiommufd.kernel.iova import IOVARange
from pyiommufd.testing.leaks import LeakCheck, kernel_fds

PAGE = mmap.PAGESIZE
IOVA = 0x100000
EXAMPLES = int(os.environ.get("PYIOMMUFD_STRESS_EXAMPLES", "1250"))
REFUSALS = (TypeError, ValueError, IOMMUFDError)

Values = st.SearchStrategy[Any]

EDGES = [
    *(
        sign * (1 << bits) + off
        for bits in (0, 12, 20, 28, 31, 32, 48, 62, 63, 64, 128)
        for sign in (1, -1)
        for off in (-1, 0, 1)
    ),
    IOVA,
    IOVA + 1,
    0xFEE0_0000,
    (1 << 64) - PAGE,
]
NUMBERS = [
    *(kind(value) for kind in (np.int8, np.uint8, np.int64, np.uint64) for value in (0, 1, 127)),
    np.uint64(2**64 - 1),
    np.int64(-1),
    np.int64(2**63 - 1),
    np.uint64(IOVA),
    np.float32(4096.5),
    np.float64(0),
    np.bool_(True),
    np.array(4096),
    np.array([4096]),
    np.array([1, 2]),
    True,
    False,
    0.0,
    1.5,
    -1.0,
    float("nan"),
    float("inf"),
    1e30,
    4096j,
]
TEXTS = [
    "",
    "\0",
    "a\0b",
    "0",
    "-1",
    " ",
    "\n",
    "..",
    "/",
    "/dev/iommu\0",
    "/dev/null",
    "/dev/vfio/devices/vfio0\n",
    "/dev/vfio/devices/vfio" + "9" * 5000,
    "/sys/devices",
    "/sys/bus/pci/devices/../devices",
    "/proc/self/fd/0",
    "x" * 5000,
    "/" + "x/" * 3000,
    "\ud800",
    "\udc80/x",
    "Ω:Ω.0",
    "\u0660\u0660\u0660\u0660:\u0660\u0662:\u0660\u0661.\u0660",
    "0000:02:01.0\0",
    "0000:02:1f.9",
    "ffffffff:ff:1f.7",
    "1234:11e8",
    "1234:11e8 ",
    "pci",
    "%s%n",
    "*:*.*",
    str(uuid.UUID(int=0)),
]


def pick(values: Sequence[Any]) -> Values:
    """One of these; `sampled_from` would hash them, which released memory refuses."""
    return st.integers(0, len(values) - 1).map(lambda number: values[number])


def integers() -> Values:
    """Of any size, and the edges of the widths that the kernel has."""
    return st.one_of(pick(EDGES), st.integers(), st.integers(-(1 << 70), 1 << 70))


@pytest.fixture(scope="module")
def memories() -> list[Any]:
    """Memory that cannot be mapped, for each reason that there is; the last ones can."""
    good, closed = DMABuffer(4 * PAGE), DMABuffer(PAGE)
    closed.close()
    released = memoryview(bytearray(PAGE))
    released.release()
    view = memoryview(good)
    many = view.cast("B", shape=[4, PAGE])
    return [
        closed,
        released,
        view[::2],
        view[::-1],
        view[1:],
        view[:-1],
        view[:0],
        view.toreadonly(),
        many,
        mmap.mmap(-1, PAGE, prot=mmap.PROT_READ),
        b"",
        b"\0" * PAGE,
        bytearray(),
        bytearray(PAGE),
        array.array("Q", range(512)),
        (ctypes.c_char * PAGE)(),
        np.zeros(512),
        np.zeros((64, 64))[:, ::2],
        np.array(["a", None], dtype=object),
        np.datetime64("2020-01-01"),
        np.zeros(0),
        uuid.UUID(int=0),
        good,
        view[PAGE : 2 * PAGE],
    ]


@pytest.fixture
def fds() -> Iterator[list[int]]:
    """Fds of many kinds, none of them of an iommufd or of a vfio device."""
    with ExitStack() as stack:
        files = [os.open(path, os.O_RDONLY) for path in ("/dev/null", "/dev/zero", "/proc/self/status", "/", "/bin/sh")]
        files += os.pipe()
        files += [os.memfd_create("x"), os.open("/dev/iommu", os.O_PATH), os.open("/dev/vfio", os.O_PATH)]
        files += [os.eventfd(0) if hasattr(os, "eventfd") else os.dup(0)]
        for fd in files:
            stack.callback(os.close, fd)
        left, right = socket.socketpair()
        with left, right, tempfile.TemporaryFile() as file:
            gone = os.dup(0)
            os.close(gone)
            yield [*files, left.fileno(), file.fileno(), gone, -1, -100, 1 << 20, 1 << 31, 1 << 64, -(1 << 64)]


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


class Hammer:
    """Calls with generated arguments, and a count of the examples."""

    def __init__(self, anything: list[Any]) -> None:
        self.junk = st.one_of(
            pick([*NUMBERS, *TEXTS, *anything]),
            integers(),
            st.text(max_size=8),
        )
        self.examples = 0
        self.accepted = 0

    def mix(self, *good: Any, strategy: Values | None = None) -> Values:
        """Now a good value, now none."""
        strategies = [self.junk]
        if good:
            strategies.append(pick(good))
        if strategy is not None:
            strategies.append(strategy)
        return st.one_of(*strategies)

    def __call__(
        self,
        call: Callable[..., Any],
        examples: int,
        *arguments: Values,
        undo: Callable[[Any], object] | None = None,
        **keywords: Values,
    ) -> None:
        """Call it so often; what raises another exception than it should fails the test.

        Args:
            call: What to call.
            examples: How often, of 10,000 in the group.
            arguments: How to make its positional arguments.
            undo: What to do with a result.
            keywords: How to make its keyword arguments, each of which is left out at times.
        """

        @settings(
            max_examples=max(10, examples * EXAMPLES // 10_000),
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.tuples(*arguments), st.fixed_dictionaries({}, optional=keywords))
        def example(positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.examples += 1
            try:
                result = call(*positional, **named)
            except REFUSALS as error:
                str(error)  # is a message, whatever was passed
                return
            self.accepted += 1
            if undo is not None:
                undo(result)

        example()


@pytest.fixture
def others(claimed: Claim, claimed_alone: Claim, alone: HostDevice, memories: list[Any]) -> Iterator[list[Any]]:
    """Objects that an argument must not be: of another iommufd, closed, of another kind."""
    with IOMMUFD() as other, ExitStack() as stack:
        closed_iommufd = IOMMUFD()
        closed_ioas = other.alloc_ioas()
        closed_ioas.close()
        foreign = other.bind(alone)
        dead = closed_iommufd.alloc_ioas()
        closed_iommufd.close()
        stack.callback(foreign.close)
        yield [
            None,
            ...,
            object(),
            IOAS,
            other,
            closed_iommufd,
            other.alloc_ioas(),
            closed_ioas,
            dead,
            foreign,
            alone,
            alone.group,
            IOVARange(0, PAGE - 1),
            IOVARange("a", None),  # type: ignore[arg-type]
            (),
            [],
            {},
            [()],
            [(1,)],
            [(1, 2, 3)],
            [None],
            ["ab"],
            {1: 2},
            range(3),
            Path("/dev/null"),
            Path("\0"),
            Path(),
            lambda: 0,
            *memories,
        ]


@pytest.fixture
def hammer(others: list[Any]) -> Hammer:
    return Hammer(others)


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
    assert hammer.examples >= EXAMPLES * 9 // 10
    assert hammer.accepted > 0


def test_device_file(hammer: Hammer, first: HostDevice, fds: list[int]) -> None:
    with LeakCheck():
        # Some of the names and devices among it are good: the file has to be closed then.
        hammer(DeviceFile, 6000, hammer.junk, undo=lambda made: made.close())
        hammer(elsewhere(DeviceFile.from_fd), 4000, st.one_of(hammer.junk, pick(fds)))
        hammer(DeviceFile, 50, hammer.mix(first, first.name, first.sys_path), undo=lambda made: made.close())
    assert hammer.examples >= EXAMPLES * 9 // 10


def pieces(hammer: Hammer) -> Values:
    """What `IOAS.map_many` takes, right in form at least."""
    place = st.integers(-1, 5).map(lambda page: page * PAGE)
    part = st.tuples(hammer.mix(strategy=place), hammer.mix(strategy=place), hammer.mix(None, strategy=integers()))
    return st.lists(part, max_size=4)


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
    assert hammer.examples >= EXAMPLES * 9 // 10
    assert hammer.accepted > 20
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
    assert hammer.examples >= EXAMPLES * 9 // 10
    assert peer_device.page_table is None
    detach(None)
    check.check()
    ioas.close()


def test_page_tables(hammer: Hammer, iommufd: IOMMUFD, device: Device, ioas: IOAS) -> None:
    ioas.map(DMABuffer(4 * PAGE), iova=IOVA)
    check = LeakCheck(iommufd)
    flags = dict.fromkeys(("nest_parent", "dirty_tracking", "pasid"), st.one_of(st.booleans(), hammer.junk))
    driver = {"data_type": st.one_of(st.just(0), integers(), hammer.junk), "data": hammer.junk}
    hammer(device.alloc_hwpt, 3500, hammer.mix(ioas), undo=lambda made: made.close(), **flags, **driver)
    hammer(device.alloc_hwpt, 500, st.just(ioas), undo=lambda made: made.close(), pasid=st.booleans())
    hammer(device.hw_info, 1500, st.one_of(st.none(), integers(), hammer.junk))
    places = st.one_of(integers(), st.integers(0, 100).map(lambda page: page * PAGE), hammer.junk)
    with device.alloc_hwpt(ioas) as hwpt:
        # Small enough to have memory for the bits, where the numbers are good.
        lengths = places.filter(lambda value: not isinstance(value, int) or value < 1 << 40)
        sizes = st.one_of(integers(), st.sampled_from([0, 3, PAGE, 1 << 30]), hammer.junk)
        hammer(hwpt.dirty_bitmap, 3500, places, lengths, page_size=sizes, clear=hammer.junk)
        hammer(hwpt.set_dirty_tracking, 500, hammer.junk)
        hammer(hwpt.close, 50, hammer.junk)
    assert hammer.examples >= EXAMPLES * 9 // 10
    assert hammer.accepted > 10
    assert ioas.hwpts == ()
    check.check()


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
        assert window.read32(0) == window.read32(0)
    with region.map() as window:
        assert window.read32(0) & 0xFF == 0xED
    assert hammer.examples >= EXAMPLES * 9 // 10
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
    assert hammer.examples >= EXAMPLES * 9 // 10
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


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
    assert hammer.examples >= EXAMPLES * 9 // 10
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
