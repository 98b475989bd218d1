"""Twins of the fixture ``iommufd_viommu``: vIOMMUs, and what is made of them."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from functools import partial

import pytest

from pyiommufd import (
    HWPT,
    IOAS,
    VIOMMU,
    AlreadyMappedError,
    BusyError,
    LostEvents,
    NestedHWPT,
    NotFoundError,
    RawEvent,
    UnsupportedError,
    VEventQueue,
    uapi,
)
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.by_id import destroy
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.nested import NO_FLAG, Cache, alloc_by_ids, check_page_request, check_unknown_queue
from tests.conformance.iommufd.steps import PAGE, issue, mock_devices, refused
from tests.mock_data import cache_entry, stage1

VIRTUAL_ID = 0x99
OTHER_ID = 0x88
DEEPEST = 1 << 19
HEADER = 8
"""Bytes before each event."""
REGISTERS = struct.Struct("=2I2Q")  # struct iommu_viommu_selftest


@dataclass(frozen=True)
class Virtual:
    """A vIOMMU of a device.

    Attributes:
        iommufd: Whose it is.
        ioas: The address space that the device is attached to.
        device: The device.
        parent: The nesting parent.
        viommu: The vIOMMU.
        nested: A page table nested in it.
    """

    iommufd: MockIOMMUFD
    ioas: IOAS
    device: MockDevice
    parent: HWPT
    viommu: VIOMMU
    nested: NestedHWPT


def make(iommufd: MockIOMMUFD, ioas: IOAS) -> Virtual:
    device = iommufd.mock_device(ioas)
    parent = device.alloc_hwpt(ioas, nest_parent=True)
    viommu = device.alloc_viommu(parent, commands.VIOMMU_TYPE)
    nested = viommu.alloc_nested(stage1())
    assert all((device.id, parent.id, viommu.id, nested.id))
    return Virtual(iommufd, ioas, device, parent, viommu, nested)


@pytest.fixture
def ioas(iommufd: MockIOMMUFD) -> IOAS:
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    return ioas


@pytest.fixture(params=["mock_viommu"])
def virtual(iommufd: MockIOMMUFD, ioas: IOAS) -> Virtual:
    return make(iommufd, ioas)


@pytest.fixture(params=["no_viommu", "mock_viommu"])
def either(request: pytest.FixtureRequest, iommufd: MockIOMMUFD, ioas: IOAS) -> IOAS | Virtual:
    """Both variants; with no vIOMMU there is an address space. Other cases are skipped there, in C as well."""
    return make(iommufd, ioas) if request.param == "mock_viommu" else ioas


def alloc_viommu(iommufd: MockIOMMUFD, device_id: int, hwpt_id: int) -> None:
    """IOMMU_VIOMMU_ALLOC by ids."""
    fields = {"type": commands.VIOMMU_TYPE, "dev_id": device_id, "hwpt_id": hwpt_id}
    issue(iommufd, uapi.IOMMU_VIOMMU_ALLOC, "iommu_viommu_alloc", **fields)


def alloc_vdevice(iommufd: MockIOMMUFD, viommu_id: int, device_id: int) -> int:
    """IOMMU_VDEVICE_ALLOC by ids. Returns that of the virtual device."""
    fields = {"viommu_id": viommu_id, "dev_id": device_id, "virt_id": VIRTUAL_ID}
    return issue(iommufd, uapi.IOMMU_VDEVICE_ALLOC, "iommu_vdevice_alloc", **fields).out_vdevice_id


# The vIOMMU itself


@twin("iommufd_viommu.viommu_auto_destroy", Route.RAW)
def test_viommu_auto_destroy(either: IOAS | Virtual, iommufd: MockIOMMUFD) -> None:
    """In C it is the fixture's end that destroys everything."""
    made = (either,) if isinstance(either, IOAS) else (either.ioas, either.parent, either.viommu)
    if isinstance(either, IOAS):
        with pytest.raises(NotFoundError):
            destroy(iommufd, either.id + 1)
    else:
        for used in made:
            with pytest.raises(BusyError):
                destroy(iommufd, used.id)
    iommufd.close()
    assert all(one.closed for one in made)
    assert mock_devices() == set()


@twin("iommufd_viommu.viommu_negative_tests", Route.RAW)
def test_viommu_negative_tests(either: IOAS | Virtual, iommufd: MockIOMMUFD) -> None:
    if isinstance(either, IOAS):
        with pytest.raises(NotFoundError):
            alloc_viommu(iommufd, 0, 0)
        return
    device, parent = either.device, either.parent
    with pytest.raises(NotFoundError):
        alloc_viommu(iommufd, device.id, 0)
    with device.alloc_hwpt(either.ioas) as plain, refused(errno.EINVAL):
        device.alloc_viommu(plain, commands.VIOMMU_TYPE)
    with pytest.raises(UnsupportedError) as caught:
        device.alloc_viommu(parent, 0xDEAD)
    assert caught.value.errno == errno.EOPNOTSUPP
    for used in (parent, either.viommu):
        with pytest.raises(BusyError):
            destroy(iommufd, used.id)


@twin("iommufd_viommu.viommu_alloc_nested_iopf", Route.RAW)
def test_viommu_alloc_nested_iopf(virtual: Virtual) -> None:
    iommufd, device, viommu = virtual.iommufd, virtual.device, virtual.viommu
    queue = iommufd.alloc_fault_queue()
    check_unknown_queue(device, viommu.id)
    with refused(errno.EOPNOTSUPP):
        flags = uapi.IOMMU_HWPT_FAULT_ID_VALID | NO_FLAG
        alloc_by_ids(iommufd, device.id, viommu.id, flags=flags, fault_id=queue.id)
    faulting = viommu.alloc_nested(stage1(), fault_queue=queue)

    with pytest.raises(NotFoundError):
        device.replace(faulting)
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.replace(faulting)
    assert device.on(faulting.id)
    with pytest.raises(BusyError):
        destroy(iommufd, faulting.id)
    check_page_request(device, queue)

    device.replace(virtual.ioas)
    faulting.close()
    queue.close()
    for gone in (faulting, queue):
        with pytest.raises(NotFoundError):
            destroy(iommufd, gone.id)


@twin("iommufd_viommu.viommu_alloc_with_data", Route.RAW)
def test_viommu_alloc_with_data(virtual: Virtual) -> None:
    viommu = virtual.device.alloc_viommu(virtual.parent, commands.VIOMMU_TYPE, REGISTERS.pack(0xBEEF, 0, 0, 0))
    given, back, offset, length = REGISTERS.unpack(viommu.data)
    assert (given, back) == (0xBEEF, 0xBEEF)
    for wrong_offset, wrong_length in (
        (offset + PAGE, length),
        (offset + 2 * PAGE, length),
        (offset, length // 2),
        (offset, length * 2),
    ):
        with refused(errno.ENXIO):
            viommu.map(wrong_offset, wrong_length)

    window = viommu.map(offset, length)
    assert window.read32(0) == 0xBEEF
    with pytest.raises(BusyError):
        destroy(virtual.iommufd, viommu.id)
    window.close()
    viommu.close()
    with pytest.raises(NotFoundError):
        destroy(virtual.iommufd, viommu.id)


# Virtual devices and events


@twin("iommufd_viommu.vdevice_alloc", Route.RAW)
def test_vdevice_alloc(either: IOAS | Virtual, iommufd: MockIOMMUFD) -> None:
    if isinstance(either, IOAS):
        with pytest.raises(NotFoundError):
            alloc_vdevice(iommufd, 0, 0)
        return
    device, viommu, nested = either.device, either.viommu, either.nested
    with pytest.raises(NotFoundError):
        device.replace(nested)
    check_depths(viommu)
    with viommu.alloc_event_queue(commands.VEVENTQ_TYPE, depth=2) as queue:
        with pytest.raises(AlreadyMappedError):
            viommu.alloc_event_queue(commands.VEVENTQ_TYPE, depth=2)
        check_short_reads(queue, 0, HEADER - 1)

        with viommu.alloc_vdevice(device, VIRTUAL_ID):
            device.replace(nested)
            device.virtual_event()
            # Room for the header is none for the event, which stays.
            check_short_reads(queue, 0, HEADER)
            assert queue.read(timeout=0) == event(0, VIRTUAL_ID)
            with pytest.raises(AlreadyMappedError):
                viommu.alloc_vdevice(device, VIRTUAL_ID)
            device.replace(either.ioas)

        with viommu.alloc_vdevice(device, OTHER_ID):
            device.replace(nested)
            for _ in range(3):
                device.virtual_event()
            read = [queue.read(timeout=0) for _ in range(3)]
            assert read == [event(1, OTHER_ID), event(2, OTHER_ID), LostEvents(sequence=3, count=1)]
            device.virtual_event()
            assert queue.read(timeout=0) == event(4, OTHER_ID)
            device.replace(either.ioas)


def event(sequence: int, virtual_id: int) -> RawEvent:
    """An event of the mock IOMMU (struct iommu_viommu_event_selftest)."""
    return RawEvent(sequence, commands.VEVENTQ_TYPE, struct.pack("=I", virtual_id))


def check_depths(viommu: VIOMMU) -> None:
    """A queue has room for one event, and for no more than there may be."""
    for depth in (0, DEEPEST + 1):
        with pytest.raises(ValueError, match="depth"):
            viommu.alloc_event_queue(commands.VEVENTQ_TYPE, depth)
        fields = {"viommu_id": viommu.id, "type": commands.VEVENTQ_TYPE, "veventq_depth": depth}
        with refused(errno.EINVAL):
            issue(viommu.iommufd, uapi.IOMMU_VEVENTQ_ALLOC, "iommu_veventq_alloc", **fields)
    queue = viommu.alloc_event_queue(commands.VEVENTQ_TYPE, DEEPEST)
    queue.close()
    with pytest.raises(NotFoundError):
        destroy(viommu.iommufd, queue.id)


def check_short_reads(queue: VEventQueue, *lengths: int) -> None:
    for length in lengths:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            os.read(queue.fileno(), length)
        assert caught.value.errno == errno.EINVAL


@twin("iommufd_viommu.vdevice_cache", Route.RAW)
def test_vdevice_cache(virtual: Virtual) -> None:
    device, viommu = virtual.device, virtual.viommu
    with viommu.alloc_vdevice(device, VIRTUAL_ID):
        entry = partial(cache_entry, virtual_id=VIRTUAL_ID)
        # In C it is EINVAL here, too, but for its entry, which names no virtual device.
        cache = Cache(viommu, entry, device.cache_holds, commands.CACHE_DEFAULT, errno.E2BIG)
        cache.check()
        cache.refuse(errno.EINVAL, [cache_entry(0, VIRTUAL_ID & 0xF)])
        cache.check_refusals()
        cache.check_effects()
        viommu.invalidate([entry(0, flags=commands.INVALIDATE_ALL)])
        cache.check(0, 1, 2, 3)


@twin("iommufd_viommu.vdevice_tombstone", Route.RAW)
def test_vdevice_tombstone(virtual: Virtual) -> None:
    iommufd, device = virtual.iommufd, virtual.device
    # Not by the library, which would close it before the device.
    unknown = alloc_vdevice(iommufd, virtual.viommu.id, device.id)
    device.close()
    with pytest.raises(NotFoundError):
        destroy(iommufd, unknown)
    # Nor is its id ever another object's.
    assert unknown not in (iommufd.alloc_ioas().id, iommufd.alloc_ioas().id)


# Hardware queues


@twin("iommufd_viommu.hw_queue", Route.RAW)
def test_hw_queue(virtual: Virtual, buffer: memoryview) -> None:
    iommufd, ioas, viommu = virtual.iommufd, virtual.ioas, virtual.viommu
    iova = commands.APERTURE_START
    alloc = partial(viommu.alloc_hw_queue, commands.HW_QUEUE_TYPE)
    with pytest.raises(UnsupportedError) as caught:
        viommu.alloc_hw_queue(uapi.IOMMU_HW_QUEUE_TYPE_DEFAULT, 0, iova, PAGE)
    assert caught.value.errno == errno.EOPNOTSUPP
    for code, where, length in ((errno.EINVAL, iova, 0), (errno.EOVERFLOW, (1 << 64) - 1, PAGE)):
        with pytest.raises(ValueError, match=r"not a range|no memory for a queue"):
            alloc(0, where, length)
        fields = {"viommu_id": viommu.id, "type": commands.HW_QUEUE_TYPE, "nesting_parent_iova": where}
        with refused(code):
            issue(iommufd, uapi.IOMMU_HW_QUEUE_ALLOC, "iommu_hw_queue_alloc", length=length, **fields)
    with pytest.raises(NotFoundError):
        alloc(0, iova, PAGE)

    owned = ioas.map(buffer[:PAGE], iova=iova)
    other = ioas.map(buffer[PAGE : 2 * PAGE])
    with refused(errno.EIO):
        alloc(1, iova, PAGE)
    with refused(errno.EINVAL):
        alloc(commands.HW_QUEUE_MAX, iova, PAGE)

    first = alloc(0, iova, PAGE)
    with pytest.raises(AlreadyMappedError):
        alloc(0, iova, PAGE)
    with pytest.raises(BusyError):
        owned.unmap()
    other.unmap()
    second = alloc(1, iova + PAGE // 2, PAGE // 2)
    with pytest.raises(BusyError):
        first.close()
    second.close()
    first.close()
    owned.unmap()
    assert ioas.unmap_all() == 0
