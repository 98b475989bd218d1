"""Every allocation that the kernel makes for the library fails once: what is refused is said, and nothing is left.

The scenarios of the kernel's own iommufd_fail_nth.c (Linux 7.3) come first, then ours. Each is a generator: what it
does before its ``yield`` is its set-up, and what it does after it fails at one point after the other.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Self

import pytest

from pyiommufd import IOAS, DMABuffer, FaultQueue, IoctlError, IOMMUFDError, NotFoundError, PagePermission
from pyiommufd.testing.checks.leaks import LeakCheck, next_id
from pyiommufd.testing.mock import FailNth, MockAccess, MockDevice, MockIOMMUFD, commands, fail_nth
from tests.sweeps import sample

PAGE = 4096
SIZE = 64 * PAGE
START = commands.APERTURE_START
NEVER = 1 << 31
"""The number of an allocation that no scenario comes to."""
LIMIT = 32
"""Bytes that iommufd may take for a batch of pages, so that it needs many."""


class Stage:
    """What a scenario plays on, and what is to be looked at after it.

    Attributes:
        buffer: Memory to map.
        iommufds: Those that it has opened.
        accesses: Those that it has made.
    """

    def __init__(self) -> None:
        self.buffer = DMABuffer(2 << 20, memfd=True)
        self.iommufds: list[MockIOMMUFD] = []
        self.accesses: list[MockAccess] = []

    @property
    def memory(self) -> memoryview:
        """The first `SIZE` bytes of the buffer."""
        return memoryview(self.buffer)[:SIZE]

    def open(self) -> MockIOMMUFD:
        """A new iommufd."""
        self.iommufds.append(MockIOMMUFD())
        return self.iommufds[-1]

    def access(self, ioas: IOAS, *, pin: bool = False) -> MockAccess:
        """A new access to an address space."""
        self.accesses.append(self.iommufds[0].mock_access(ioas, pin=pin))
        return self.accesses[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for iommufd in self.iommufds:
            iommufd.close()

    def check(self) -> None:
        """What is open can be used and closed; no object, no pin and no device is left."""
        for iommufd in self.iommufds:
            for access in self.accesses:
                access.close()
            for one in iommufd.objects:
                assert not one.closed
                use(one)
            for one in iommufd.objects:
                one.close()
            assert next_id(iommufd) == 1
            iommufd.close()
        with MockIOMMUFD() as afterwards:
            assert afterwards.pinned(self.buffer, 0)
        assert list(Path("/sys/bus/iommufd_mock/devices").iterdir()) == []


def use(one: object) -> None:
    """Use an object that has survived a failure."""
    if isinstance(one, IOAS):
        memory = DMABuffer(PAGE)
        with one.map(memory) as mapping:
            assert mapping.mapped
        assert one.unmap_all() >= 0
        assert one.mappings == ()
    elif isinstance(one, MockDevice):
        memory = DMABuffer(PAGE)
        ioas = one.iommufd.alloc_ioas()
        for pasid in one.page_tables:
            one.detach(pasid)
        one.attach(ioas)
        with ioas.map(memory) as mapping:
            assert one.reaches(memory, mapping.iova)
        one.detach()
        ioas.close()
    elif isinstance(one, FaultQueue):
        with pytest.raises(TimeoutError):
            one.read(0)


Scenario = Callable[[Stage], Generator[None, None, None]]


# Those of the kernel's own test


def basic(stage: Stage) -> Generator[None, None, None]:
    yield
    ioas = stage.open().alloc_ioas()
    ioas.iova_ranges()
    ioas.allow_iovas([(4 * PAGE, 64 << 20)])
    mapping = ioas.map(stage.buffer)
    ioas.copy_from(ioas, mapping.iova, PAGE)
    mapping.unmap()
    # Where the unmap before has been made to fail as if nothing was mapped, this one does it.
    with contextlib.suppress(NotFoundError):
        ioas.unmap(mapping.iova, mapping.length)


def map_domain(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    with iommufd.memory_limit(LIMIT):
        yield
        with iommufd.mock_device(ioas):
            ioas.map(stage.memory)
        iommufd.mock_device(ioas)


def map_file_domain(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    with iommufd.memory_limit(LIMIT):
        yield
        with iommufd.mock_device(ioas):
            ioas.map_file(stage.buffer, SIZE)
        iommufd.mock_device(ioas)


def map_two_domains(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    with iommufd.memory_limit(LIMIT):
        first = iommufd.mock_device(ioas)
        yield
        second = iommufd.mock_device(ioas)
        ioas.map(stage.memory)
        first.close()
        second.close()
        iommufd.mock_device(ioas)
        iommufd.mock_device(ioas)


def access_rw(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    with iommufd.memory_limit(LIMIT):
        iova = ioas.map(stage.memory).iova
        yield
        access = stage.access(ioas)
        for slow in (False, True):
            data = access.read(iova, 64, slow=slow)
            access.write(iova, data, slow=slow)
        access.read(iova, 8 * PAGE, slow=True)
        access.close()


def access_pin(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    with iommufd.memory_limit(LIMIT):
        iova = ioas.map(stage.buffer).iova
        access = stage.access(ioas, pin=True)
        yield
        access.pin(iova, stage.buffer).unpin()
        access.close()


def access_pin_domain(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    with iommufd.memory_limit(LIMIT):
        device = iommufd.mock_device(ioas)
        iova = ioas.map(stage.buffer).iova
        access = stage.access(ioas, pin=True)
        yield
        access.pin(iova, stage.buffer).unpin()
        access.close()
        device.close()


def device(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    first, second = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    for ioas in (first, second):
        ioas.map(stage.memory[:PAGE], iova=START)
    yield
    device = iommufd.mock_device(first, pasid=True)
    device.hw_info()
    hwpt = device.alloc_hwpt(first, pasid=True)
    device.replace(second)
    device.replace(hwpt)
    parent = device.alloc_hwpt(first, nest_parent=True, pasid=True)
    iommufd.alloc_fault_queue()
    other = device.alloc_hwpt(first, pasid=True)
    device.attach(parent, 200)
    device.replace(other, 200)
    device.detach(200)


# Ours


def many_pieces(stage: Stage) -> Generator[None, None, None]:
    """Many mappings as one, of which one fails; those before it are taken back."""
    iommufd = stage.open()
    ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    iommufd.mock_device(ioas)
    yield
    with ioas.map_many(stage.buffer, [(2 * PAGE * at, PAGE, START + 2 * PAGE * at) for at in range(8)]):
        copy = other.copy_from(ioas, START, PAGE)
    copy.unmap()


def cut(stage: Stage) -> Generator[None, None, None]:
    """An unmap that has to find out what it has left mapped, since its range cuts a mapping in two."""
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    iommufd.mock_device(ioas)
    mappings = [ioas.map(stage.memory[: 2 * PAGE], iova=START + 2 * PAGE * at) for at in range(3)]
    yield
    with pytest.raises(NotFoundError):
        ioas.unmap(START, 5 * PAGE)
    for mapping in mappings:
        mapping.unmap()


def preview(stage: Stage) -> Generator[None, None, None]:
    """Page tables on trial, of mappings and of one that is out of reach."""
    iommufd = stage.open()
    ioas, low = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    device = iommufd.mock_device(ioas)
    ioas.map(stage.memory, iova=START)
    low.map(stage.memory, iova=PAGE)
    device.detach()
    yield
    device.preview_attach(ioas)
    device.preview_attach(low)
    with pytest.raises(IoctlError) as caught:
        device.attach(low)
    if caught.value.errno != errno.EADDRINUSE:
        raise caught.value
    device.attach(ioas)


def dirty_pages(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    device = iommufd.mock_device(ioas)
    ioas.map(stage.memory, iova=START)
    yield
    hwpt = device.alloc_hwpt(ioas, dirty_tracking=True)
    hwpt.set_dirty_tracking(True)
    device.replace(hwpt)
    device.set_dirty(START, [3], count=SIZE // PAGE)
    assert hwpt.dirty_bitmap(START, SIZE)
    with pytest.raises(ValueError, match=f"nothing is mapped at {START + SIZE:#x}"):
        hwpt.dirty_bitmap(START, 2 * SIZE)
    hwpt.set_dirty_tracking(False)


def page_faults(stage: Stage) -> Generator[None, None, None]:
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    device = iommufd.mock_device(ioas)
    yield
    queue = iommufd.alloc_fault_queue()
    hwpt = device.alloc_hwpt(ioas, fault_queue=queue)
    device.replace(hwpt)
    request = None
    while request is None:
        device.page_fault(START, group=3, permissions=PagePermission.WRITE)
        with contextlib.suppress(TimeoutError):  # the kernel answers for itself what it has no memory for
            request = queue.read(0)
    assert (request.number, [(one.device, one.address) for one in request.requests]) == (3, [(device, START)])
    queue.respond(request)
    device.replace(ioas)
    hwpt.close()
    queue.close()


def closes(stage: Stage) -> Generator[None, None, None]:
    """The close of all there is."""
    iommufd = stage.open()
    ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    queue = iommufd.alloc_fault_queue()
    device = iommufd.mock_device(ioas, pasid=True)
    ioas.map_many(stage.buffer, [(2 * PAGE * at, PAGE, START + 2 * PAGE * at) for at in range(8)])
    other.copy_from(ioas, START, PAGE)
    device.replace(device.alloc_hwpt(ioas, pasid=True, fault_queue=queue))
    device.attach(device.alloc_hwpt(other, pasid=True), 200)
    stage.access(ioas, pin=True).pin(START, stage.memory[:PAGE])
    yield
    iommufd.close()


SCENARIOS: tuple[Scenario, ...] = (
    basic,
    map_domain,
    map_file_domain,
    map_two_domains,
    access_rw,
    access_pin,
    access_pin_domain,
    device,
    many_pieces,
    cut,
    preview,
    dirty_pages,
    page_faults,
    closes,
)


DOCUMENTED = (errno.ENOMEM, errno.EFAULT, errno.ENOENT, errno.EINVAL)
"""What a point fails with: an allocation, or one of those that iommufd marks itself (``iommufd_should_fail`` in
drivers/iommu/iommufd): memory cannot be pinned, an object is not found, a device's reserved addresses are not known.
"""


def play(scenario: Scenario, number: int) -> tuple[FailNth, IOMMUFDError | None]:
    """Have one point of a scenario fail. What that came to, and what was raised for it."""
    refused: IOMMUFDError | None = None
    with LeakCheck(), Stage() as stage:
        steps = scenario(stage)
        next(steps)
        with fail_nth(number) as failure:
            try:
                next(steps, None)
            except IOMMUFDError as error:
                refused = error
        stage.check()
    if isinstance(refused, IoctlError):
        assert refused.errno in DOCUMENTED, refused
    elif refused is not None:
        assert "behind the mock IOMMU" in str(refused)
    return failure, refused


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[one.__name__ for one in SCENARIOS])
def test_failures_leave_nothing(scenario: Scenario) -> None:
    play(scenario, NEVER)  # what is done once in the life of the kernel, or of the process
    counted, refused = play(scenario, NEVER)
    assert refused is None
    points = range(1, counted.points + 1)
    # The kernel does not take quite the same way each time: the last points may not be reached, or be followed by more.
    hit = sum(play(scenario, number)[0].injected for number in sample(f"failures.{scenario.__name__}", points, 8))
    assert hit > 0
    for number in itertools.count(counted.points + 1):
        failure, refused = play(scenario, number)
        if not failure.injected:
            break
    assert refused is None
