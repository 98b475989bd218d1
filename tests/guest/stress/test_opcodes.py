"""An exception before any opcode of the library, as a signal handler can raise it.

What is promised, in this order: no memory is freed that a device can reach; nothing of another's is destroyed or
unmapped; no fd is lost; an object may stay until the iommufd is closed, and that works.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from traceback import walk_tb
from typing import Any

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AlreadyMappedError,
    Claim,
    ClosedError,
    Device,
    DeviceFile,
    DMABuffer,
    DMAMapping,
    DMAMappings,
    HostDevice,
    InUseError,
    IoctlError,
    NotFoundError,
    UnsupportedError,
    uapi,
)
from pyiommufd.kernel.memory import mapping, mapping_requests
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.uapi import raw
from tests import by_id
from tests.guest.dma import IOVA
from tests.opcodes import opcodes
from tests.sweeps import sample

PAGE = mmap.PAGESIZE
FILES = ("pyiommufd/kernel/", "pyiommufd/uapi/", "pyiommufd/closing.py", "pyiommufd/iterables.py")


@dataclass
class Scene:
    """An iommufd with a device that is bound and attached, or not; and what is made from it.

    Attributes:
        host: The device.
        iommufd: The iommufd.
        kept: Whatever an operation works on.
        devices: What was bound.
    """

    host: HostDevice
    iommufd: IOMMUFD = field(default_factory=IOMMUFD)
    kept: list[Any] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buffer = DMABuffer(8 * PAGE, memfd=True)
        self.ioas, self.other = self.iommufd.alloc_ioas(), self.iommufd.alloc_ioas()
        self.memory = DMABuffer(PAGE)
        self.small = self.ioas.map(self.memory, iova=5 * IOVA)

    @property
    def device(self) -> Device:
        """The device, which is bound."""
        (device,) = self.iommufd.devices
        return device

    def bound(self) -> Scene:
        self.devices.append(self.iommufd.bind(self.host))
        return self

    def attached(self) -> Scene:
        self.bound().device.attach(self.ioas)
        return self

    def mapped(self) -> Scene:
        self.kept.append(self.ioas.map(self.buffer, iova=IOVA))
        return self

    def many(self) -> Scene:
        pieces = [(at * PAGE, PAGE, 2 * IOVA + 2 * at * PAGE) for at in range(4)]
        self.kept.append(self.ioas.map_many(self.buffer, pieces))
        return self

    def meddle(self) -> None:
        """What one kind of signal handler does: maps, unmaps, allocates and closes objects of its own."""
        with contextlib.suppress(ClosedError):
            self.small.unmap()
            self.ioas.map(self.memory, iova=6 * IOVA).unmap()
            self.other.map(self.memory, iova=7 * IOVA)
            self.iommufd.alloc_ioas().close()
            self.iommufd.alloc_ioas().map(self.memory)

    def empty(self) -> None:
        """What another kind does: unmaps everything mapped, and lets the ids of unused objects be reused."""
        with contextlib.suppress(ClosedError):
            for ioas in (self.ioas, self.other):
                ioas.unmap_all()
                with contextlib.suppress(InUseError):
                    ioas.close()
                self.iommufd.alloc_ioas()

    def copy(self) -> None:
        """What a third kind does: copies everything mapped."""
        with contextlib.suppress(ClosedError):
            for mapping in self.ioas.mappings:
                for iova, length in mapping.ranges():
                    with contextlib.suppress(AlreadyMappedError):
                        self.other.copy_from(self.ioas, iova, length, dst_iova=iova)

    def keep(self, made: Any) -> Scene:
        self.kept.append(made)
        return self


Step = Callable[[Scene], object]


def _closed_file(scene: Scene) -> Scene:
    return scene.keep(DeviceFile(scene.host))


def _take_over(scene: Scene) -> None:
    fd = os.dup(scene.iommufd._file.fd)
    try:
        scene.keep(IOMMUFD.from_fd(fd))
    except BaseException:
        with contextlib.suppress(OSError):  # it had been taken over, and was closed
            os.close(fd)
        raise


# What comes before, what is interrupted, and whether it is to be done again afterwards.
OPERATIONS: dict[str, tuple[Step, Step, bool]] = {
    "open": (lambda s: s, lambda s: s.keep(IOMMUFD()), False),
    "from_fd": (lambda s: s, _take_over, False),
    "memfd": (lambda s: s, lambda s: DMABuffer(PAGE, memfd=True), False),
    "alloc_ioas": (lambda s: s, lambda s: s.iommufd.alloc_ioas(), False),
    "alloc_fault_queue": (lambda s: s, lambda s: s.iommufd.alloc_fault_queue(), False),
    "queue.close": (lambda s: s.keep(s.iommufd.alloc_fault_queue()), lambda s: s.kept[0].close(), True),
    "ioas.close": (lambda s: s.mapped().many(), lambda s: s.ioas.close(), True),
    "bind(DeviceFile)": (_closed_file, lambda s: s.iommufd.bind(s.kept[0]), False),
    "bind": (lambda s: s, lambda s: s.iommufd.bind(s.host), False),
    "alloc_hwpt": (lambda s: s.bound(), lambda s: s.device.alloc_hwpt(s.ioas), False),
    "hwpt.close": (lambda s: s.bound().keep(s.device.alloc_hwpt(s.ioas)), lambda s: s.kept[0].close(), True),
    "attach": (lambda s: s.bound().mapped(), lambda s: s.device.attach(s.ioas), False),
    "replace": (lambda s: s.attached().mapped(), lambda s: s.device.replace(s.other), False),
    "detach": (lambda s: s.attached().mapped(), lambda s: s.device.detach(), False),
    "preview_attach": (lambda s: s.bound().mapped(), lambda s: s.device.preview_attach(s.ioas), False),
    "vfio_ioas": (lambda s: setattr(s.iommufd, "vfio_ioas", s.ioas), lambda s: s.iommufd.vfio_ioas, False),
    "map": (lambda s: s.attached(), lambda s: s.ioas.map(s.buffer), False),
    "map(iova=)": (lambda s: s, lambda s: s.ioas.map(s.buffer, iova=IOVA), False),
    "map(below=)": (lambda s: s.attached(), lambda s: s.ioas.map(s.buffer, below=1 << 32), False),
    "map(progress=)": (lambda s: s.attached(), lambda s: s.ioas.map(s.buffer, progress=lambda *_: None), False),
    "map(progress=) cancelled": (  # by the last call
        lambda s: s.attached(), lambda s: s.ioas.map(s.buffer, progress=lambda done, of: 1 // (of - done)), False),
    "map refused": (lambda s: s.mapped(), lambda s: s.ioas.map(s.buffer, iova=IOVA), False),
    "map_many": (lambda s: s.attached(), lambda s: s.many(), False),
    "map_file": (lambda s: s, lambda s: s.ioas.map_file(s.buffer, PAGE), False),
    "copy_from": (lambda s: s.mapped().many(), lambda s: s.other.copy_from(s.ioas, IOVA, PAGE), False),
    "mapping.unmap": (lambda s: s.attached().mapped(), lambda s: s.kept[0].unmap(), True),
    "mappings.unmap": (lambda s: s.attached().many(), lambda s: s.kept[0].unmap(), True),
    "ioas.unmap": (lambda s: s.mapped().many(), lambda s: s.ioas.unmap(2 * IOVA, 3 * PAGE), False),
    "ioas.unmap refused": (lambda s: s.many().mapped(), lambda s: s.ioas.unmap(IOVA, IOVA + PAGE // 2), False),
    "unmap_all": (lambda s: s.mapped().many(), lambda s: s.ioas.unmap_all(), False),
    "region.map": (lambda s: s.bound(), lambda s: s.device.region(0).map(), False),
    "export_dma_buf": (lambda s: s.bound(), lambda s: s.device.region(0).export_dma_buf(), False),
    "dma_buf.close": (lambda s: s.bound().keep(s.device.region(0).export_dma_buf()), lambda s: s.kept[0].close(), True),
    "device.close": (lambda s: s.attached().mapped().keep(s.device).keep(s.device.region(0).map()),
                     lambda s: s.kept[1].close(), True),
    "iommufd.close": (lambda s: s.attached().mapped().many().keep(s.device.region(0).map()),
                      lambda s: s.iommufd.close(), True),
}  # fmt: skip


def kernel_unmaps(iommufd: IOMMUFD, ioas: IOAS) -> int:
    """How many bytes the kernel has mapped, by unmapping them behind the objects' back."""
    try:
        return by_id.unmap(iommufd._file.fd, ioas.id, 0, 0xFFFF_FFFF_FFFF_FFFF)
    except NotFoundError:
        return 0


def kernel_has(iommufd: IOMMUFD, ioas: IOAS) -> bool:
    """Whether the kernel has the address space of that id."""
    try:
        raw.ioctl(iommufd._file.fd, uapi.IOMMU_IOAS_IOVA_RANGES, raw.struct("iommu_ioas_iova_ranges", ioas_id=ioas.id))
    except IoctlError as error:
        return error.errno == errno.EMSGSIZE
    return True


def check(scene: Scene, again: Callable[[], object] | None) -> None:
    """The promise; the scene is closed afterwards."""
    iommufd = scene.iommufd
    if not iommufd.closed:
        check_objects(scene, again)
    elif again is not None:
        again()
    iommufd.close()
    for kept in scene.kept:
        if isinstance(kept, IOMMUFD | DeviceFile):
            kept.close()
    scene.buffer.close()
    with IOMMUFD() as another:
        another.bind(scene.host).close()


def check_objects(scene: Scene, again: Callable[[], object] | None) -> None:
    """What the iommufd's objects say is what the kernel does."""
    iommufd = scene.iommufd
    # What is bound is on record, and on nothing that is closed.
    assert [device for device in scene.devices if not device.closed] == [
        device for device in iommufd.devices if device in scene.devices
    ]
    for device in iommufd.devices:
        assert not [page_table for page_table in device.page_tables.values() if page_table.closed]
    for file in [kept for kept in scene.kept if isinstance(kept, DeviceFile)]:
        # The file is the caller's still, and can be bound; or the device is on record.
        assert file.closed == bool(iommufd.devices)
        if not file.closed:
            iommufd.bind(file)
    # What gets the ids that have become free is nobody else's to destroy.
    memory = DMABuffer(PAGE)
    strangers = [iommufd.alloc_ioas() for _ in range(3)]
    for stranger in strangers:
        stranger.map(memory, iova=4 * IOVA)
    # Nor what is mapped by now where something has been.
    taken = []
    for iova in (IOVA, 2 * IOVA, 8 * IOVA) if not scene.ioas.closed else ():
        with contextlib.suppress(AlreadyMappedError):
            taken.append(scene.ioas.map(memory, iova=iova))
    if again is not None:
        again()
    if iommufd.closed:
        return
    for stranger in strangers:
        assert kernel_unmaps(iommufd, stranger) == PAGE
    if not scene.ioas.closed:
        assert all(one.mapped for one in taken)
    for device in iommufd.devices:
        for page_table in (scene.ioas, scene.other):
            if not page_table.closed and device.page_table is not page_table:
                # Nobody is attached to it: the kernel lets it go.
                page_table.unmap_all() if page_table.mappings else None
                page_table.close()
        if device.page_table is not None:
            assert isinstance(device.page_table, IOAS)
            with pytest.raises(IoctlError) as caught:
                raw.ioctl(iommufd._file.fd, uapi.IOMMU_DESTROY, raw.struct("iommu_destroy", id=device.page_table.id))
            assert caught.value.errno == errno.EBUSY
    for ioas in (scene.ioas, scene.other):
        if ioas.closed:
            continue
        assert kernel_has(iommufd, ioas)
        known = sum(length for mapping in ioas.mappings for _, length in mapping.ranges())
        assert sum(mapping.length for mapping in ioas.mappings if mapping.mapped) == known
        mine = [one for one in ioas._table.of_no_file() if one not in taken]
        if any(start < 4 * IOVA for one in mine for start, _ in one.ranges()):
            with pytest.raises(BufferError):
                scene.buffer.close()
        if any(start == 5 * IOVA for one in mine for start, _ in one.ranges()):
            with pytest.raises(BufferError):
                scene.memory.close()
        assert kernel_unmaps(iommufd, ioas) == known


# What the signal handler does, and whether it raises.
MODES: dict[str, tuple[Callable[[Scene], object], bool]] = {
    "raises": (lambda scene: None, True),
    "meddles, raises": (Scene.meddle, True),
    "meddles": (Scene.meddle, False),
    "empties": (Scene.empty, False),
    "copies, raises": (Scene.copy, True),
}


# Of what was made and not yet given to anybody, and of what is raised in its finalizer.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_handler_before_any_opcode(
    claimed_alone: Claim, alone: HostDevice, uncollected: None, monkeypatch: pytest.MonkeyPatch, name: str, mode: str
) -> None:
    prepare, action, repeated = OPERATIONS[name]
    handler, raises = MODES[mode]
    monkeypatch.setattr(mapping, "PIECES_A_CALL", 2)
    monkeypatch.setattr(mapping_requests, "PIECES_A_CALL", 2)
    monkeypatch.setattr(mapping_requests, "PROGRESS_BYTES", 4 * PAGE)
    leaks = LeakCheck()

    def once(stop: int | None) -> int:
        """Up to that opcode, or the end; how many there were."""
        scene = Scene(alone)
        try:
            prepare(scene)
        except UnsupportedError as error:
            scene.iommufd.close()
            pytest.skip(f"this kernel or IOMMU has no such object: {error}")

        def act() -> None:
            with contextlib.suppress(Exception):  # what is refused is so in every run, or is what the check finds
                action(scene)

        count, where = opcodes(act, FILES, stop, lambda: handler(scene), raises=raises)
        try:
            check(scene, act if repeated else None)
            found = leaks.leaks()
            assert not found
        except BaseException as error:
            error.add_note(f"{name}, interrupted before opcode {stop}, {where}")
            raise
        return count

    every = once(None)
    assert every > 5
    for stop in sample(f"stress.opcodes[{name}, {mode}]", range(every), 2 if mode == "raises" else 1):
        assert once(stop) == stop or not raises


# What maps memory, or a copy of what is mapped at IOVA.
MAPS: dict[str, Callable[[IOAS, IOAS, DMABuffer], object]] = {
    "map": lambda ioas, _, memory: ioas.map(memory),
    "map(below=)": lambda ioas, _, memory: ioas.map(memory, below=1 << 32),
    "map(progress=)": lambda ioas, _, memory: ioas.map(memory, progress=lambda *_: None),
    "map_many": lambda ioas, _, memory: ioas.map_many(memory, [(0, PAGE, None), (PAGE, PAGE, None)]),
    "copy_from": lambda ioas, other, _: other.copy_from(ioas, IOVA, PAGE),
}


@pytest.mark.parametrize("name", MAPS)
def test_what_is_not_mapped_is_not_held(name: str) -> None:
    """Though the exception of a signal handler still has the frames of what it has interrupted."""

    class Stopped(Exception):  # noqa: N818 - no error
        pass

    def stopped() -> None:
        raise Stopped

    with IOMMUFD() as iommufd:
        ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()

        def once(stop: int | None) -> int:
            memory = DMABuffer(2 * PAGE)
            if name == "copy_from":
                ioas.map(memory, iova=IOVA)
            kept, count = None, 0
            try:
                count, _ = opcodes(lambda: MAPS[name](ioas, other, memory), FILES, stop, stopped)
            except Stopped as error:
                kept = error
            for one in (*ioas.mappings, *other.mappings):
                one.unmap()
            try:
                memory.close()
            except BufferError as error:
                trace = kept.__traceback__ if kept else None
                frames = [f"{frame.f_code.co_name}:{line}" for frame, line in walk_tb(trace)]
                error.add_note(f"{name}, interrupted before opcode {stop}: {' '.join(frames)}")
                raise
            assert (kept is None) == (stop is None)
            return count

        every = once(None)
        assert every > 5
        for stop in sample(f"stress.held[{name}]", range(every), 20):
            once(stop)


# What makes a mapping of several pieces, of memory or of what is mapped at IOVA.
UNMAPS: dict[str, Callable[[IOAS, DMABuffer], DMAMapping | DMAMappings]] = {
    "map(progress=)": lambda ioas, memory: ioas.map(memory, progress=lambda *_: None),
    "map_many": lambda ioas, memory: ioas.map_many(memory, [(0, PAGE, None), (PAGE, PAGE, None)]),
    "copy_from": lambda ioas, _: ioas.copy_from(ioas, IOVA, PAGE),
}


@pytest.mark.parametrize("name", UNMAPS)
def test_unmap_all_leaves_nothing_that_an_interrupted_unmap_has_left(name: str) -> None:
    with IOMMUFD() as iommufd, DMABuffer(PAGE) as source:
        ioas = iommufd.alloc_ioas()

        def once(stop: int | None) -> int:
            memory = DMABuffer(2 * PAGE)
            ioas.map(source, iova=IOVA)
            mapping = UNMAPS[name](ioas, memory)
            count, where = opcodes(mapping.unmap, FILES, stop)
            ioas.unmap_all()
            assert not ioas._table, where
            memory.close()
            return count

        every = once(None)
        assert every > 5
        for stop in sample(f"stress.left[{name}]", range(every), 20):
            once(stop)


# What the kernel refuses, or the C code, and with which errno.
REFUSED: dict[str, tuple[Callable[[IOMMUFD, IOAS, DMABuffer], object], int | type[Exception]]] = {
    "map": (lambda _, ioas, memory: ioas.map(memory, iova=IOVA), errno.EEXIST),
    "map of no pages": (lambda _, ioas, memory: ioas.map(memory, iova=IOVA + 1), ValueError),
    "map_many": (lambda _, ioas, memory: ioas.map_many(memory, [(0, PAGE, 0), (0, PAGE, IOVA)]), errno.EEXIST),
    "map(progress=)": (lambda _, ioas, memory: ioas.map(memory, iova=IOVA, progress=lambda *_: None), errno.EEXIST),
    "map_file": (lambda _, ioas, memory: ioas.map_file(memory.fileno(), PAGE, iova=IOVA), errno.EEXIST),
    "copy_from": (lambda _, ioas, memory: ioas.copy_from(ioas, 8 * IOVA, PAGE), errno.ENOENT),
    "unmap": (lambda _, ioas, memory: ioas.unmap(8 * IOVA, PAGE), errno.ENOENT),
    "rlimit_mode": (lambda iommufd, *_: setattr(iommufd, "rlimit_mode", True), errno.EBUSY),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_keeps_its_reason(name: str) -> None:
    """A signal handler that is refused something else, or nothing, before any opcode: the error is the operation's."""
    refused, reason = REFUSED[name]
    with IOMMUFD() as iommufd:
        ioas, memory, spare = iommufd.alloc_ioas(), DMABuffer(PAGE, memfd=True), DMABuffer(PAGE)
        ioas.map(memory, iova=IOVA)

        def act() -> None:
            with pytest.raises((IoctlError, ValueError)) as caught:
                refused(iommufd, ioas, memory)
            error = caught.value
            assert (error.errno if isinstance(error, IoctlError) else type(error)) == reason

        def handler() -> None:
            ioas.map(spare).unmap()
            with pytest.raises(IoctlError):
                raw.ioctl(0, uapi.IOMMU_IOAS_ALLOC)
            with pytest.raises(NotFoundError):
                ioas.unmap(8 * IOVA, PAGE)

        every, _ = opcodes(act, FILES)
        assert every > 5
        for stop in sample(f"stress.refusals[{name}]", range(every), 20):
            opcodes(act, FILES, stop, handler, raises=False)
        assert [place for mapping in ioas.mappings for place in mapping.ranges()] == [(IOVA, PAGE)]
