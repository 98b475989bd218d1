"""vIOMMUs and what is made of them: allocation, refusals, invalidation, events, queues, registers, closing."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import (
    HWPT,
    IOAS,
    VIOMMU,
    AlreadyMappedError,
    BusyError,
    ClosedError,
    CloseError,
    DMABuffer,
    ForkedError,
    InUseError,
    InvalidationError,
    IoctlError,
    LostEvents,
    NotFoundError,
    RawData,
    RawEvent,
    SMMUv3Command,
    SMMUv3Stage1,
    UnsupportedError,
    VEvent,
    VEventQueue,
)
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.by_id import destroy
from tests.mock_data import stage1

VIRTUAL_ID = 0x77
IOVA = commands.APERTURE_START + 0x10000


def entry(number: int, *, everything: bool = False) -> RawData:
    """An entry of an invalidation of the mock IOMMU."""
    flags = commands.INVALIDATE_ALL if everything else 0
    return RawData(commands.VIOMMU_INVALIDATE_TYPE, struct.pack("=4I", flags, VIRTUAL_ID, number, 0))


def events(viommu: VIOMMU, depth: int = 4) -> VEventQueue:
    return viommu.alloc_event_queue(commands.VEVENTQ_TYPE, depth)


class Own:
    """Typed data of a user's own making, of any type."""

    def __init__(self, number: Any) -> None:
        self.type = number

    def __bytes__(self) -> bytes:
        return bytes(4)


# Page tables


def test_a_nested_page_table_is_the_devices(
    iommufd: MockIOMMUFD, device: MockDevice, parent: HWPT, viommu: VIOMMU, ioas: IOAS
) -> None:
    nested = viommu.alloc_nested(stage1())
    assert (nested.parent, nested.viommu, nested.ioas, nested.host) == (parent, viommu, ioas, device.host)
    assert (nested.uses, viommu.uses, parent.users) == ((viommu,), (parent,), (viommu,))
    assert iommufd.objects == (device, nested, viommu, parent, ioas)
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    assert device.replace(nested).devices == (device.host,)
    assert device.page_table is nested
    assert device.on(nested.id)
    with pytest.raises(InUseError, match=device.name):
        viommu.close()
    assert not nested.closed
    device.replace(ioas)
    viommu.close()
    assert (nested.closed, viommu.closed, parent.closed) == (True, True, False)


def test_nested_in_a_parent_alone(iommufd: MockIOMMUFD, device: MockDevice, parent: HWPT) -> None:
    nested = parent.alloc_nested(stage1(0x1234))
    assert (nested.viommu, nested.uses) == (None, (parent,))
    assert all(iommufd.iotlb_holds(nested.id, number, 0x1234) for number in range(commands.IOTLB_ENTRIES))
    device.replace(nested)
    entries = [RawData(commands.HWPT_INVALIDATE_TYPE, struct.pack("=2I", 0, number)) for number in (0, 2)]
    nested.invalidate(entries)
    found = [iommufd.iotlb_holds(nested.id, number, 0) for number in range(commands.IOTLB_ENTRIES)]
    assert found == [True, False, True, False]
    nested.invalidate([])
    nested.invalidate([RawData(commands.HWPT_INVALIDATE_TYPE, struct.pack("=2I", commands.INVALIDATE_ALL, 0))])
    assert all(iommufd.iotlb_holds(nested.id, number, 0) for number in range(commands.IOTLB_ENTRIES))


def test_an_invalidation_says_what_was_done(iommufd: MockIOMMUFD, parent: HWPT) -> None:
    nested = parent.alloc_nested(stage1())
    wrong = [RawData(commands.HWPT_INVALIDATE_TYPE, struct.pack("=2I", 0, number)) for number in (1, 99, 2)]
    with pytest.raises(InvalidationError, match="entry 2 of 3") as caught:
        nested.invalidate(wrong)
    assert [cause.summary.split(",")[0] for cause in caught.value.causes] == ["the type"]
    assert (caught.value.done, caught.value.errno) == (1, errno.EINVAL)
    assert iommufd.iotlb_holds(nested.id, 1, 0)
    assert not iommufd.iotlb_holds(nested.id, 2, 0)
    with pytest.raises(ValueError, match="of one type and length"):
        nested.invalidate([wrong[0], SMMUv3Command.tlbi_all()])
    with pytest.raises(TypeError, match="not bytes"):
        nested.invalidate([b"abc"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"a list of entries, such as .*, not RawData"):
        nested.invalidate(wrong[0])  # type: ignore[arg-type]
    for number, error in ((-1, ValueError), (1 << 32, ValueError), (None, TypeError)):
        with pytest.raises(error, match="the type of an entry is"):
            nested.invalidate([Own(number)])
    nested.close()
    for entries in (wrong[:1], []):
        with pytest.raises(ClosedError):
            nested.invalidate(entries)


@pytest.mark.parametrize("nest_parent", [False, True])
def test_refused_page_tables(device: MockDevice, ioas: IOAS, nest_parent: bool) -> None:
    hwpt = device.alloc_hwpt(ioas, nest_parent=nest_parent)
    with pytest.raises(IoctlError) as caught:
        hwpt.alloc_nested(RawData(commands.HWPT_DATA_TYPE + nest_parent, bytes(4)))
    assert caught.value.errno == (errno.EOPNOTSUPP if nest_parent else errno.EINVAL)
    assert caught.value.causes
    assert ("nest_parent=True" in str(caught.value)) is not nest_parent
    if nest_parent:
        with pytest.raises(UnsupportedError, match=r"make it by VIOMMU.alloc_nested\(\)"):
            hwpt.alloc_nested(SMMUv3Stage1((0, 0)))
        with pytest.raises(IoctlError, match="another IOMMU than the vIOMMU") as caught:
            device.alloc_viommu(hwpt, commands.VIOMMU_TYPE).alloc_nested(RawData(commands.HWPT_DATA_TYPE, b""))
        assert caught.value.errno == errno.EINVAL
        assert "nest_parent" not in str(caught.value)
    with pytest.raises(TypeError, match="typed data"):
        hwpt.alloc_nested(bytes(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the type of a stage-1 page table is a number of 32 bits"):
        hwpt.alloc_nested(Own(1 << 32))


# vIOMMUs


def test_refused_viommus(device: MockDevice, parent: HWPT, ioas: IOAS) -> None:
    with pytest.raises(UnsupportedError, match="no virtual IOMMUs of that type"):
        device.alloc_viommu(parent, 1)
    with pytest.raises(IoctlError, match="nesting parent"):
        device.alloc_viommu(device.alloc_hwpt(ioas), commands.VIOMMU_TYPE)
    with pytest.raises(IoctlError, match="the data are not what"):
        device.alloc_viommu(parent, commands.VIOMMU_TYPE, b"short")
    with pytest.raises(TypeError, match="not on IOAS"):
        device.alloc_viommu(ioas, commands.VIOMMU_TYPE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bits"):
        device.alloc_viommu(parent, 1 << 32)
    with MockIOMMUFD() as other, pytest.raises(ValueError, match="another IOMMUFD"):
        other.mock_device(other.alloc_ioas()).alloc_viommu(parent, commands.VIOMMU_TYPE)


def test_registers_are_mapped(device: MockDevice, parent: HWPT, in_child: Callable[[Callable[[], Any]], Any]) -> None:
    # struct iommu_viommu_selftest: a number in, its complement and the place of the registers out.
    given = struct.pack("=2I2Q", 0xCAFE, 0, 0, 0)
    viommu = device.alloc_viommu(parent, commands.VIOMMU_TYPE, given)
    number, back, offset, length = struct.unpack("=2I2Q", viommu.data)
    assert (number, back, length) == (0xCAFE, 0xCAFE, 2 * mmap.PAGESIZE)
    window = viommu.map(offset, length)
    window.write64(8, 0x1122334455667788)
    assert window.read32(8) == 0x55667788
    for wrong_offset, wrong_length in ((offset, mmap.PAGESIZE), (offset + mmap.PAGESIZE, mmap.PAGESIZE)):
        with pytest.raises(IoctlError, match=f"{wrong_length:#x} bytes at {wrong_offset:#x} of <VIOMMU") as caught:
            viommu.map(wrong_offset, wrong_length)
        assert caught.value.errno == errno.ENXIO
        assert caught.value.causes
    with pytest.raises(ValueError, match="not pages"):
        viommu.map(offset, 100)

    def child() -> str:
        with pytest.raises(ForkedError) as caught:
            window.read32(8)
        viommu.close()
        return type(caught.value).__name__

    assert in_child(child) == "ForkedError"
    assert window.read32(8) == 0x55667788
    viommu.close()
    assert window.closed
    with pytest.raises(ClosedError):
        window.read32(8)
    with pytest.raises(ClosedError):
        viommu.map(offset, length)


# Virtual devices


def test_a_virtual_device_takes_a_place(device: MockDevice, viommu: VIOMMU, iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    virtual = viommu.alloc_vdevice(device, VIRTUAL_ID)
    assert (virtual.viommu, virtual.device, virtual.virtual_id) == (viommu, device, VIRTUAL_ID)
    other = iommufd.mock_device(ioas)
    for one, number in ((device, 1), (other, VIRTUAL_ID)):
        with pytest.raises(AlreadyMappedError, match=f"VDevice {virtual.id}, {device.name} as 0x77"):
            viommu.alloc_vdevice(one, number)
    virtual.close()
    viommu.alloc_vdevice(other, VIRTUAL_ID)
    with pytest.raises(ValueError, match="64 bits"):
        viommu.alloc_vdevice(device, -1)
    for wrong, name in (("0000:01:00.0", "str"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"not for {name}"):
            viommu.alloc_vdevice(wrong, 1)  # type: ignore[arg-type]


def test_a_virtual_device_goes_with_its_device(device: MockDevice, viommu: VIOMMU, iommufd: MockIOMMUFD) -> None:
    virtual = viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.close()
    assert virtual.closed
    assert virtual not in iommufd.objects
    virtual.close()
    with pytest.raises(LookupError, match="not bound any more"):
        viommu.alloc_nested(stage1())


def test_a_virtual_device_that_the_kernel_took_away_is_closed() -> None:
    iommufd = MockIOMMUFD()
    ioas = iommufd.alloc_ioas()
    device = iommufd.mock_device(ioas)
    viommu = device.alloc_viommu(device.alloc_hwpt(ioas, nest_parent=True), commands.VIOMMU_TYPE)
    virtual = viommu.alloc_vdevice(device, VIRTUAL_ID)
    destroy(iommufd, device.stdev_id)  # which unbinds it behind the back of its object
    virtual.close()
    assert virtual.closed
    with pytest.raises(NotFoundError):
        device.hw_info()
    with pytest.raises(CloseError, match="no object of that id"):  # the mock device is gone
        iommufd.close()


def test_invalidation_reaches_the_devices_cache(device: MockDevice, viommu: VIOMMU) -> None:
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.replace(viommu.alloc_nested(stage1()))
    viommu.invalidate([entry(1), entry(3)])
    values = [device.cache_holds(number, commands.CACHE_DEFAULT) for number in range(commands.CACHE_ENTRIES)]
    assert values == [True, False, True, False]
    with pytest.raises(InvalidationError) as caught:
        viommu.invalidate([entry(0), entry(2), entry(commands.CACHE_ENTRIES), entry(1)])
    assert caught.value.done == 2
    assert all(device.cache_holds(number, 0) for number in range(commands.CACHE_ENTRIES))


# Events


def test_events_of_an_unknown_type_come_as_bytes(device: MockDevice, viommu: VIOMMU) -> None:
    queue = events(viommu)
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.replace(viommu.alloc_nested(stage1()))
    with pytest.raises(TimeoutError, match="no event"):
        queue.read(timeout=0)
    for wrong, error in (("1", TypeError), (float("nan"), ValueError), (10**400, ValueError), ([], TypeError)):
        with pytest.raises(error, match="timeout is a number of seconds"):
            queue.read(timeout=wrong)  # type: ignore[arg-type]
    for _ in range(2):
        device.virtual_event()
    assert [queue.read(timeout=0) for _ in range(2)] == [
        RawEvent(number, commands.VEVENTQ_TYPE, VIRTUAL_ID.to_bytes(4, "little")) for number in range(2)
    ]


def test_lost_events_are_told(device: MockDevice, viommu: VIOMMU) -> None:
    queue = events(viommu, depth=2)
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.replace(viommu.alloc_nested(stage1()))
    for _ in range(5):
        device.virtual_event()
    first, second, lost = (queue.read(timeout=0) for _ in range(3))
    assert (first.sequence, second.sequence) == (0, 1)
    assert lost == LostEvents(sequence=4, count=3)
    device.virtual_event()
    assert queue.read(timeout=0).sequence == 5
    # Lost ones, and then one that was not, before anybody has read: the kernel takes its own sign back.
    for _ in range(3):
        device.virtual_event()
    assert queue.read(timeout=0).sequence == 6
    device.virtual_event()
    rest: list[VEvent] = []
    while len(rest) < 3:
        rest.append(queue.read(timeout=0))
    assert rest[1] == LostEvents(sequence=8, count=1)
    assert [one.sequence for one in rest] == [7, 8, 9]


def test_events_are_awaited(device: MockDevice, viommu: VIOMMU) -> None:
    queue = events(viommu)
    viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.replace(viommu.alloc_nested(stage1()))

    async def wait() -> list[int]:
        found = []
        asyncio.get_running_loop().call_soon(device.virtual_event)
        found.append((await queue).sequence)
        asyncio.get_running_loop().call_soon(device.virtual_event)
        async for event in queue:
            found.append(event.sequence)
            queue.close()
        return found

    assert asyncio.run(wait()) == [0, 1]


@pytest.mark.parametrize("depth", [0, -1, (1 << 19) + 1])
def test_wrong_depths(viommu: VIOMMU, depth: int) -> None:
    with pytest.raises(ValueError, match="depth"):
        events(viommu, depth)


def test_one_queue_of_a_type(viommu: VIOMMU) -> None:
    queue = events(viommu, 1 << 19)
    with pytest.raises(AlreadyMappedError, match="already"):
        events(viommu)
    with pytest.raises(UnsupportedError):
        viommu.alloc_event_queue(0)
    queue.close()
    queue.close()
    events(viommu).close()
    with pytest.raises(ClosedError):
        queue.read(timeout=0)


# Hardware queues


def test_hardware_queues_are_made_in_order_and_closed_in_the_other(viommu: VIOMMU, ioas: IOAS) -> None:
    with DMABuffer(mmap.PAGESIZE) as memory:
        mapping = ioas.map(memory, iova=IOVA)
        with pytest.raises(IoctlError, match="before it") as caught:
            viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 1, IOVA, mmap.PAGESIZE)
        assert caught.value.errno == errno.EIO
        queues = [viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, number, IOVA, mmap.PAGESIZE) for number in range(2)]
        assert [(queue.index, queue.memory.start, queue.viommu) for queue in queues] == [
            (0, IOVA, viommu),
            (1, IOVA, viommu),
        ]
        with pytest.raises(AlreadyMappedError):
            viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 0, IOVA, mmap.PAGESIZE)
        with pytest.raises(IoctlError, match="no queue of that number") as caught:
            viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, commands.HW_QUEUE_MAX, IOVA, mmap.PAGESIZE)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(BusyError, match=r"\n  the hardware queue of the next number is there; .*$"):
            queues[0].close()
        with pytest.raises(BusyError):
            mapping.unmap()
        viommu.close()
        assert all(queue.closed for queue in queues)
        mapping.unmap()


def test_wrong_memory_of_hardware_queues(viommu: VIOMMU) -> None:
    with pytest.raises(NotFoundError, match="map it"):
        viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 0, IOVA, mmap.PAGESIZE)
    for iova, length in ((IOVA, 0), ((1 << 64) - 1, 2), (-1, 4096)):
        with pytest.raises(ValueError):  # noqa: PT011 - three texts
            viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 0, iova, length)
    with pytest.raises(UnsupportedError):
        viommu.alloc_hw_queue(0, 0, IOVA, mmap.PAGESIZE)


# Closing


def test_everything_goes_with_the_address_space(
    iommufd: MockIOMMUFD, device: MockDevice, ioas: IOAS, parent: HWPT, viommu: VIOMMU
) -> None:
    queue = events(viommu)
    virtual = viommu.alloc_vdevice(device, VIRTUAL_ID)
    device.replace(viommu.alloc_nested(stage1()))
    copy = os.dup(queue.fileno())
    with pytest.raises(InUseError, match=device.name):
        ioas.close()
    assert not any(one.closed for one in (queue, virtual, parent))
    device.detach()
    with pytest.raises(BusyError):  # the caller's copy of the fd keeps the queue
        ioas.close()
    os.close(copy)
    ioas.close()
    assert iommufd.objects == (device,)
