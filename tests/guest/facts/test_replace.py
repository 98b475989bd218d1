"""What the kernel does to a whole IOMMU group when one of its devices gets another page table."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    Device,
    DMABuffer,
    DMAMapping,
    HostDevice,
    IoctlError,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.by_id import destroy
from tests.guest.facts.members import names, on_driver, unbound_edu

IOVA = 0x100000

Arrives = Callable[[EduDriver, DMABuffer], bool]


def test_a_replace_moves_every_attached_peer_with_it(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    members: set[str],
) -> None:
    attached = (device, peer_device, third_device)
    for one in attached:
        one.attach(ioas)
    other, elsewhere = iommufd.alloc_ioas(), DMABuffer(4096)
    other.map(elsewhere, iova=IOVA)
    # By the one that was attached in the middle: whose replace it is does not matter.
    change = peer_device.replace(other)
    assert change.kind is ChangeKind.REPLACE
    assert names(change.devices) == members
    kept = buffer[:64]
    assert arrives(edu, elsewhere)
    assert arrives(peer_edu, elsewhere)
    assert buffer[:64] == kept
    assert [one.page_table for one in attached] == [other] * 3
    # The kernel has none of the three on the old table: it lets it go, and not the new one.
    ioas.close()
    with pytest.raises(IoctlError) as caught:
        destroy(iommufd, other.id)
    assert caught.value.errno == errno.EBUSY


def test_a_replace_moves_a_member_that_is_not_bound(
    device: Device, iommufd: IOMMUFD, ioas: IOAS, peer: HostDevice, arrives: Arrives
) -> None:
    here, there, other = DMABuffer(4096), DMABuffer(4096), iommufd.alloc_ioas()
    ioas.map(here, iova=IOVA)
    other.map(there, iova=IOVA)
    with on_driver(peer, None), unbound_edu(peer) as driverless:
        device.attach(ioas)
        assert arrives(driverless, here)
        device.replace(other)
        assert arrives(driverless, there)


def test_a_replace_has_no_gap(
    device: Device, peer_device: Device, peer_edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer
) -> None:
    """The same memory at the same address in both tables: a transfer goes there or, blocked, nowhere.

    No gap for anything else to be reached, that is. Most drivers of IOMMUs block a device before they give it the new
    table, so that a transfer may be lost; see `Device.replace`.
    """
    ioas.map(buffer, iova=IOVA)
    other = iommufd.alloc_ioas()
    other.copy_from(ioas, IOVA, len(buffer), dst_iova=IOVA)
    device.attach(ioas)
    peer_device.attach(ioas)
    data = bytes(range(1, 256)) * 8
    nothing = bytes(len(data))
    buffer[: len(data)] = data
    peer_edu.copy_in(IOVA, len(data))
    buffer[: len(data)] = nothing
    stop = False

    def swap() -> None:
        turns = 0
        while not stop:
            device.replace((other, ioas)[turns % 2])
            turns += 1
        swaps.append(turns)

    def written(offset: int) -> bool:
        """Transfer to the offset, which nothing else may have changed; then clear it again."""
        peer_edu.copy_out(IOVA + offset, len(data))
        found = buffer[offset : offset + len(data)]
        assert found in (data, nothing)
        buffer[offset : offset + len(data)] = nothing
        assert buffer[:] == bytes(len(buffer))
        return found == data

    swaps: list[int] = []
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        arrived = [written(2048 * turn) for turn in range(6)]
    finally:
        stop = True
        thread.join()
    assert swaps[0] > 1  # how many, is up to the machine
    assert any(arrived)
    assert written(0)


def test_a_refused_replace_keeps_the_old_table_for_every_device(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    attached = (device, peer_device, third_device)
    for one in attached:
        one.attach(ioas)
    other = iommufd.alloc_ioas()
    other.map(DMABuffer(4096), iova=0xFEE0_0000)
    for one in attached:
        with pytest.raises(IoctlError, match="0xfee00000") as caught:
            one.replace(other)
        assert caught.value.errno == errno.EADDRINUSE
    assert [one.page_table for one in attached] == [ioas] * 3
    assert arrives(edu, buffer)
    assert arrives(peer_edu, buffer)
    other.close()
