"""SR-IOV of an igb: eight virtual functions beside their physical one, each with DMA of its own; their VF token."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator

import pytest

from pyiommufd import IOMMUFD, AccessDeniedError, ChangeKind, Device, DMABuffer, HostDevice, IoctlError, Verdict
from pyiommufd.host.claims.vfs import set_vfs
from pyiommufd.host.discovery.vfs import vfs_of
from pyiommufd.testing.drivers.igb import DEVICE_ID, VENDOR_ID
from tests.guest.devices.factories import Claimer
from tests.patience import until

COUNT = 8
IOVA = 0x100000
FRAME = 60
# Registers and descriptors: Intel 82576 datasheet, chapter 8; those of a virtual function's own queue.
TRANSMIT_CONTROL, TRANSMIT = 0x0400, 1 << 1
RING, RING_LENGTH, TAIL, QUEUE, QUEUE_ON = 0x3800, 0x3808, 0x3818, 0x3828, 1 << 25
# An advanced data descriptor: the end of a frame, with a checksum added, to be reported when it has been sent.
SENT_FRAME, DONE = 3 << 20 | 1 << 29 | 1 << 27 | 1 << 25 | 1 << 24, 1


@pytest.fixture(scope="module")
def physical(claim: Claimer) -> HostDevice:
    """The physical function, on vfio-pci."""
    return claim(VENDOR_ID, DEVICE_ID)


@pytest.fixture(scope="module")
def functions(physical: HostDevice) -> Iterator[tuple[HostDevice, ...]]:
    """Its virtual functions, which vfio-pci has made, and so has."""
    yield set_vfs(physical, COUNT).devices
    (physical.sys_path / "sriov_numvfs").write_text("0")
    assert physical.virtual_functions == ()


@pytest.fixture
def token() -> uuid.UUID:
    return uuid.uuid4()


@pytest.fixture
def bound(iommufd: IOMMUFD, physical: HostDevice, token: uuid.UUID) -> Device:
    """The physical function, bound with the token."""
    return iommufd.bind(physical, token=token)


def send(device: Device, iova: int, memory: DMABuffer) -> None:
    """Have a virtual function send a frame: by DMA it reads ring and frame, and reports it in the ring."""
    device.bus_master = True
    struct.pack_into("<QII", memory, 0, iova + 4096, SENT_FRAME | FRAME, FRAME << 14)
    with device.region(0).map() as registers:
        registers.write32(RING, iova)
        registers.write32(RING + 4, 0)
        registers.write32(RING_LENGTH, 128)
        registers.write32(QUEUE, QUEUE_ON)
        registers.write32(TAIL, 1)
        until(lambda: bool(struct.unpack_from("<I", memory, 12)[0] & DONE), lambda: memory[:16].hex())


def test_each_is_found_from_the_other(physical: HostDevice, functions: tuple[HostDevice, ...]) -> None:
    assert len(functions) == COUNT
    assert physical.virtual_functions == functions
    assert {function.physical_function for function in functions} == {physical}
    assert physical.physical_function is None
    assert {function.driver for function in functions} == {"vfio-pci"}
    # Each alone in its group, behind a port with ACS.
    assert len({device.group_id for device in (physical, *functions)}) == COUNT + 1
    assert vfs_of(physical).count == COUNT


def test_all_are_bound_and_attached_beside_each_other(
    iommufd: IOMMUFD, bound: Device, functions: tuple[HostDevice, ...], token: uuid.UUID
) -> None:
    """The same address is other memory to each."""
    ioas = iommufd.alloc_ioas()
    buffer = DMABuffer(2 * 4096)
    ioas.map(buffer, iova=IOVA)
    change = bound.attach(ioas)
    assert (change.kind, change.verdict, change.devices) == (ChangeKind.FIRST, Verdict.KNOWN, (bound.host,))
    with bound.region(0).map() as registers:
        registers.write32(TRANSMIT_CONTROL, TRANSMIT)
    memories = []
    for function in functions:
        device = iommufd.bind(function, token=token)
        assert device.bind_change.devices == (function,)
        own, memory = iommufd.alloc_ioas(), DMABuffer(2 * 4096)
        own.map(memory, iova=IOVA)
        assert device.attach(own).devices == (function,)
        memories.append(memory)
    for place, device in enumerate(iommufd.devices[1:]):
        send(device, IOVA, memories[place])
        assert [memory[12] & DONE for memory in memories] == [DONE] * (place + 1) + [0] * (COUNT - place - 1)
    assert buffer[:] == bytes(len(buffer))


def test_token_of_the_physical_function(
    iommufd: IOMMUFD, bound: Device, functions: tuple[HostDevice, ...], token: uuid.UUID
) -> None:
    function, other = functions[-1], uuid.uuid4()

    def refused(given: uuid.UUID | None, word: str) -> None:
        with pytest.raises(AccessDeniedError) as caught:
            iommufd.bind(function, token=given)
        assert [cause.summary for cause in caught.value.causes] == [
            f"the VF token is {word}: its physical function {bound.host} is on vfio-pci"
        ]

    refused(None, "missing")
    refused(other, "wrong")
    iommufd.bind(function, token=token).close()
    bound.set_vf_token(other)
    refused(token, "wrong")
    used = iommufd.bind(function, token=str(other))
    # Closed early, it leaves its token behind, and wants it back while virtual functions are in use.
    bound.close()
    with pytest.raises(AccessDeniedError, match="virtual functions of the device are in use"):
        iommufd.bind(bound.host, token=token)
    iommufd.bind(bound.host, token=other).close()
    used.close()
    refused(None, "missing")
    refused(token, "wrong")
    iommufd.bind(bound.host, token=token).close()
    iommufd.bind(function, token=token).close()


def test_resets_beside_each_other(
    iommufd: IOMMUFD, bound: Device, functions: tuple[HostDevice, ...], token: uuid.UUID
) -> None:
    device = iommufd.bind(functions[0], token=token)
    device.reset()
    bound.reset()
    assert device.info().flags
    with pytest.raises(IoctlError, match="its virtual functions would be reset too") as caught:
        bound.hot_reset()
    (cause,) = caught.value.causes
    assert f"pyiommufd vfs {bound.name} 0" in cause.command


def test_way_out_of_a_hot_reset_that_is_refused(bound: Device, functions: tuple[HostDevice, ...]) -> None:
    """While the physical function is claimed and bound."""
    assert [device.name for device in bound.hot_reset_info().not_owned] == [one.name for one in functions]
    set_vfs(bound.host, 0)
    assert list(bound.hot_reset_info().not_owned) == []
    assert len(set_vfs(bound.host, COUNT).devices) == COUNT


def test_virtual_function_taken_over_from_its_fd(
    iommufd: IOMMUFD, bound: Device, functions: tuple[HostDevice, ...], token: uuid.UUID
) -> None:
    """The kernel tells its id: its bus could be reset."""
    device = iommufd.bind(functions[1], token=token)
    with Device.from_fd(os.dup(device.fileno()), iommufd) as twin:
        assert twin.id == device.id
        twin.reset()
