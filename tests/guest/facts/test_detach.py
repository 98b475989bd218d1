"""When an IOMMU group is blocked again, and when it is the host's."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import (
    IOAS,
    ChangeKind,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    HostDevice,
)
from pyiommufd.host import drivers, sysfs
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.facts.members import names

IOVA = 0x100000

Arrives = Callable[[EduDriver, DMABuffer], bool]


def test_detach_blocks_when_the_last_of_three_detaches_and_not_before(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    members: set[str],
) -> None:
    for one in (device, peer_device, third_device):
        one.attach(ioas)
    for leaving in (device, peer_device):
        change = leaving.detach()
        assert (change.kind, change.devices) == (ChangeKind.DETACH, ())
        assert arrives(edu, buffer)
        assert arrives(peer_edu, buffer)
    change = third_device.detach()
    assert change.kind is ChangeKind.DETACH
    assert names(change.devices) == members
    assert not arrives(edu, buffer)
    assert not arrives(peer_edu, buffer)


def test_unbind_of_an_attached_device_detaches_it_alone(
    device: Device,
    peer_device: Device,
    third_device: Device,
    peer_edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    third_device.attach(ioas)
    device.close()
    assert arrives(peer_edu, buffer)
    third_device.close()
    assert not arrives(peer_edu, buffer)


def test_host_drivers_fail_to_probe_until_the_last_bound_device_closes(
    device: Device, peer_device: Device, neighbour: HostDevice, claimed: Claim
) -> None:
    drivers.unbind(neighbour)
    drivers.set_driver_override(neighbour, None)

    def refused(path: Path) -> int:
        with pytest.raises(OSError, match=str(path)) as caught:
            sysfs.write(path, neighbour.name)
        return caught.value.errno or 0

    bus = sysfs.SYS / "bus/pci"
    try:
        for bound in (device, peer_device):
            assert refused(bus / "drivers/virtio-pci/bind") == errno.EBUSY
            assert refused(bus / "drivers_probe") == errno.EINVAL
            bound.close()
        sysfs.write(bus / "drivers_probe", neighbour.name)
        assert drivers.driver_of(neighbour) == "virtio-pci"
    finally:
        drivers.unbind(neighbour)
        drivers.set_driver_override(neighbour, "vfio-pci")
        drivers.bind(neighbour, "vfio-pci")
