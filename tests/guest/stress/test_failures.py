"""Every allocation that the kernel makes for the library fails once: what is refused is said, and nothing is left.

The scenarios of the kernel's own iommufd_fail_nth.c (Linux 7.3) come first, then ours. Each is a generator: what it
does before its ``yield`` is its set-up, and what it does after it fails at one point after the other.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import struct
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Self

import pytest

from pyiommufd import (
    HWPT,
    IOAS,
    VIOMMU,
    BusyError,
    Claim,
    CloseError,
    Device,
    DMABuffer,
    FaultQueue,
    HostDevice,
    IoctlError,
    IOMMUFDError,
    LostEvents,
    NotFoundError,
    PagePermission,
    RawData,
    RawEvent,
    VEventQueue,
)
from pyiommufd.kernel.memory import mapping_requests
from pyiommufd.testing.checks.leaks import LeakCheck, next_id
from pyiommufd.testing.mock import FailNth, MockAccess, MockDevice, MockIOMMUFD, commands, fail_each, fail_nth
from tests.mock_data import stage1
from tests.sweeps import sample

PAGE = 4096
SIZE = 64 * PAGE
START = commands.APERTURE_START
VIRTUAL_ID = 0x77
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
        for iommufd in [one for one in self.iommufds if not one.closed]:
            for access in self.accesses:
                access.close()
            for one in iommufd.objects:
                assert not one.closed
                use(one)
            for one in iommufd.objects:
                if isinstance(one, IOAS):
                    one.unmap_all()
                    assert one.mappings == ()
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
    elif isinstance(one, Device):
        memory = DMABuffer(PAGE)
        ioas = one.iommufd.alloc_ioas()
        for pasid in one.page_tables:
            one.detach(pasid)
        one.attach(ioas)
        with ioas.map(memory, iova=START):
            assert not isinstance(one, MockDevice) or one.reaches(memory, START)
        one.detach()
        ioas.close()
    elif isinstance(one, FaultQueue | VEventQueue):
        with contextlib.suppress(TimeoutError):
            one.read(0)
    elif isinstance(one, VIOMMU):
        one.alloc_nested(stage1()).close()


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
    viommu = device.alloc_viommu(parent, commands.VIOMMU_TYPE)
    viommu.alloc_vdevice(device, 0)
    viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 0, START, PAGE)
    parent.alloc_nested(stage1(), fault_queue=iommufd.alloc_fault_queue())
    viommu.alloc_event_queue(commands.VEVENTQ_TYPE, 2)
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


def with_progress(stage: Stage) -> Generator[None, None, None]:
    """A mapping of several pieces, of which one fails, or the look at what is free before them."""
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    iommufd.mock_device(ioas)
    yield
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping_requests, "PROGRESS_BYTES", 16 * PAGE)
        ioas.map(stage.memory, progress=lambda *_: None).unmap()


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
    group = None
    while group is None:
        device.page_fault(START, group=3, permissions=PagePermission.WRITE)
        with contextlib.suppress(TimeoutError):  # the kernel answers for itself what it has no memory for
            group = queue.read(0)
    assert group.number == 3
    assert [(one.device, one.address) for one in group] == [(device, START)]
    queue.respond(group)
    device.replace(ioas)
    hwpt.close()
    queue.close()


def virtual(stage: Stage) -> tuple[MockIOMMUFD, IOAS, MockDevice, HWPT]:
    """A device, and a page table that others can be nested in."""
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    ioas.map(stage.memory, iova=START)
    device = iommufd.mock_device(ioas)
    return iommufd, ioas, device, device.alloc_hwpt(ioas, nest_parent=True)


def nested(stage: Stage) -> Generator[None, None, None]:
    """`NestedHWPT`."""
    _, ioas, device, parent = virtual(stage)
    yield
    nested = parent.alloc_nested(stage1())
    device.replace(nested)
    nested.invalidate([RawData(commands.HWPT_INVALIDATE_TYPE, struct.pack("=2I", 0, number)) for number in (0, 2)])
    device.replace(ioas)
    nested.close()


def viommu(stage: Stage) -> Generator[None, None, None]:
    """`VIOMMU`, with its registers."""
    _, _, device, parent = virtual(stage)
    yield
    viommu = device.alloc_viommu(parent, commands.VIOMMU_TYPE, struct.pack("=2I2Q", 0xCAFE, 0, 0, 0))
    _, back, offset, length = struct.unpack("=2I2Q", viommu.data)
    assert back == 0xCAFE
    window = viommu.map(offset, length)
    window.write64(8, 0x1122334455667788)
    assert window.read32(8) == 0x55667788
    viommu.alloc_nested(stage1())
    viommu.close()
    assert window.closed


def vdevice(stage: Stage) -> Generator[None, None, None]:
    """`VDevice`, which commands to a vIOMMU name."""
    _, ioas, device, parent = virtual(stage)
    viommu = device.alloc_viommu(parent, commands.VIOMMU_TYPE)
    yield
    made = viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.replace(viommu.alloc_nested(stage1()))
    viommu.invalidate([RawData(commands.VIOMMU_INVALIDATE_TYPE, struct.pack("=4I", 0, VIRTUAL_ID, 1, 0))])
    assert device.cache_holds(1, 0)
    device.replace(ioas)
    made.close()
    viommu.alloc_vdevice(device, VIRTUAL_ID)


def events(stage: Stage) -> Generator[None, None, None]:
    """`VEventQueue`: an event that the kernel has no memory for is lost, and that is told."""
    _, _, device, parent = virtual(stage)
    viommu = device.alloc_viommu(parent, commands.VIOMMU_TYPE)
    yield
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    queue = viommu.alloc_event_queue(commands.VEVENTQ_TYPE, 4)
    device.replace(viommu.alloc_nested(stage1()))
    device.virtual_event()
    event = queue.read(0)
    assert isinstance(event, LostEvents) or event == RawEvent(
        sequence=0, type=commands.VEVENTQ_TYPE, data=struct.pack("=I", VIRTUAL_ID)
    )
    queue.close()


def hw_queues(stage: Stage) -> Generator[None, None, None]:
    """`HWQueue`: its memory stays mapped as long as it is there."""
    _, ioas, device, parent = virtual(stage)
    viommu = device.alloc_viommu(parent, commands.VIOMMU_TYPE)
    yield
    first = viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 0, START, PAGE)
    second = viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 1, START + PAGE, PAGE)
    with pytest.raises(BusyError):
        ioas.unmap(START, SIZE)
    second.close()
    first.close()
    assert ioas.unmap_all() == SIZE


def closes(stage: Stage) -> Generator[None, None, None]:
    """The close of all there is."""
    iommufd = stage.open()
    ioas, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    queue = iommufd.alloc_fault_queue()
    device = iommufd.mock_device(ioas, pasid=True)
    ioas.map_many(stage.buffer, [(2 * PAGE * at, PAGE, START + 2 * PAGE * at) for at in range(8)])
    other.copy_from(ioas, START, PAGE, dst_iova=START)
    device.replace(device.alloc_hwpt(ioas, pasid=True, fault_queue=queue))
    device.attach(device.alloc_hwpt(other, pasid=True), 200)
    viommu = device.alloc_viommu(device.alloc_hwpt(ioas, nest_parent=True), commands.VIOMMU_TYPE)
    viommu.alloc_nested(stage1())
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    viommu.alloc_event_queue(commands.VEVENTQ_TYPE)
    viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 0, START, PAGE)
    stage.access(ioas, pin=True).pin(START, stage.memory[:PAGE])
    yield
    iommufd.close()


def device_file(stage: Stage, host: HostDevice) -> Generator[None, None, None]:
    """A device of the machine: attached, its registers and interrupts in use.

    Not its bind, which enables it: where an allocation failed there, a later close ended in a panic (Linux 7.3,
    acpi_pci_irq_disable).
    """
    iommufd = stage.open()
    ioas = iommufd.alloc_ioas()
    device = iommufd.bind(host)
    yield
    device.attach(ioas)
    with ioas.map(stage.memory, iova=START), device.region(0).map() as window:
        device.replace(device.alloc_hwpt(ioas))
        assert window.read32(0) & 0xFF == 0xED
        with device.region(0).ioeventfd(0x04, 4, 1):
            pass
        (msi,) = device.interrupts.msi.enable()
        msi.trigger()
        assert msi.take() == 1
        device.interrupts.msi.disable()
        device.bus_master = True
        device.preview_attach(ioas)
        device.detach()
    device.close()


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
    with_progress,
    cut,
    preview,
    dirty_pages,
    page_faults,
    nested,
    viommu,
    vdevice,
    events,
    hw_queues,
    closes,
)


DOCUMENTED = (errno.ENOMEM, errno.EFAULT, errno.ENOENT, errno.EINVAL, errno.ENOSPC)
"""What a point fails with: an allocation, of vectors ENOSPC; or one of the points that iommufd marks itself
(``iommufd_should_fail`` in drivers/iommu/iommufd): memory cannot be pinned, an object is not found, a device's reserved
addresses are not known.
"""


def play(scenario: Scenario, number: int) -> tuple[FailNth, IOMMUFDError | None]:
    """Have one point of a scenario fail. What that came to, and what was raised for it."""
    refused: IOMMUFDError | None = None
    with Stage() as stage:
        steps = scenario(stage)
        next(steps)
        with fail_nth(number) as failure:
            try:
                next(steps, None)
            except IOMMUFDError as error:
                refused = error
        stage.check()
    first: BaseException | None = refused
    if isinstance(refused, CloseError):
        first, *others = refused.errors
        assert all(isinstance(one, BusyError) for one in others)  # as what could not be detached is on it
    if isinstance(first, IoctlError):
        assert first.errno in DOCUMENTED, first
    elif first is not None:
        assert "behind the mock IOMMU" in str(first)
    return failure, refused


def sweep(name: str, scenario: Scenario) -> None:
    """Have every point of a scenario fail, or a sample of them."""
    with LeakCheck():
        play(scenario, NEVER)  # what is done once in the life of the kernel, or of the process
        counted, refused = play(scenario, NEVER)
        assert refused is None
        points = range(1, counted.points + 1)
        # The kernel does not take quite the same way each time: it may not come to the last ones, or to a few more.
        hit = sum(play(scenario, number)[0].injected for number in sample(f"failures.{name}", points, 6))
        assert hit > 0
        for number in itertools.count(counted.points + 1):
            failure, refused = play(scenario, number)
            if not failure.injected:
                break
        assert refused is None


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[one.__name__ for one in SCENARIOS])
def test_failures_leave_nothing(scenario: Scenario) -> None:
    sweep(scenario.__name__, scenario)


@pytest.mark.long
def test_failures_of_a_device_leave_nothing(claimed_alone: Claim, alone: HostDevice) -> None:
    sweep("device_file", lambda stage: device_file(stage, alone))


def test_a_probe_that_fails_is_no_hole() -> None:
    """What is said of what is not mapped is true, or nothing is said."""
    with MockIOMMUFD() as iommufd:
        ioas, buffer = iommufd.alloc_ioas(), DMABuffer(4 * PAGE)
        hwpt = iommufd.mock_device(ioas).alloc_hwpt(ioas, dirty_tracking=True)
        ioas.map(buffer, iova=START)
        hwpt.set_dirty_tracking(True)
        told = 0
        for attempt in fail_each():
            with attempt, contextlib.suppress(IoctlError):
                with pytest.raises(ValueError, match=f"nothing is mapped at {START + 4 * PAGE:#x}"):
                    hwpt.dirty_bitmap(START, 8 * PAGE)
                told += 1
        assert told > 0
