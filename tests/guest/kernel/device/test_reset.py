"""Resets: of the device alone, and of its whole bus with what is on it."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import IOMMUFD, Claim, ClosedError, Device, HostDevice, IoctlError
from tests.guest.kernel.members import on_driver
from tests.patience import patience


def test_device_that_cannot_be_reset_alone(device: Device, peer_device: Device) -> None:
    """It shares its bus, and has no method of its own. What sysfs lists is what the kernel found when it came."""
    assert device.reset_methods == ("bus",)
    with pytest.raises(IoctlError, match=r"hot_reset\(\)") as caught:
        device.reset()
    assert caught.value.errno == errno.EINVAL
    assert caught.value.request == "VFIO_DEVICE_RESET"
    assert peer_device.name in caught.value.causes[0].evidence
    assert peer_device.name in caught.value.causes[0].fix
    with pytest.raises(ValueError, match="no reset method 'flr'; its methods: bus"):
        device.reset("flr")
    assert device.reset_methods == ("bus",)


def test_hot_reset_names_what_it_takes(device: Device, peer_device: Device, neighbour: HostDevice) -> None:
    info = device.hot_reset_info()
    assert {one.name: one.owned for one in info.devices} == {
        device.name: True,
        peer_device.name: True,
        # Claimed with its group and not bound: it would be reset all the same.
        neighbour.name: True,
    }
    assert {one.name: one.id for one in info.devices} == {
        device.name: device.id,
        peer_device.name: peer_device.id,
        neighbour.name: None,
    }
    assert info.not_owned == ()


def test_hot_reset_is_carried_out(device: Device, peer_device: Device) -> None:
    """An edu device keeps its registers over a reset (see tests/guest/devices/test_nvme.py for one that does not)."""
    (vector,) = device.interrupts.msi.enable()
    with device.region(0).map() as window:
        info = device.hot_reset()
        assert len(info.devices) == 3
        # The kernel has restored the configuration: memory decode, bus mastering and MSI are as they were.
        assert window.read32(0) & 0xFF == 0xED
        assert device.bus_master
        assert peer_device.memory_decode
        window.write32(0x60, 1)
        assert vector.wait(patience()) == 1
        window.write32(0x64, 1)


def test_refused_hot_reset_names_who_is_not_owned(device: Device, peer: HostDevice) -> None:
    """The peer is on no driver: it is in nobody's hands."""
    with on_driver(peer, None):
        assert [one.name for one in device.hot_reset_info().not_owned] == [peer.name]
        with pytest.raises(IoctlError) as caught:
            device.hot_reset()
        assert caught.value.errno == errno.EINVAL
        (cause,) = caught.value.causes
        assert cause.summary == f"{peer.name} would be reset too, and is not bound to this iommufd"
        assert cause.evidence == "it is on no driver"
        assert "plan_claim" in cause.fix
    device.hot_reset()


def test_device_on_the_root_bus(lone_device: Device) -> None:
    """Nothing above it could reset its bus, and it has no method of its own: neither reset names the other."""
    for ask in (lone_device.hot_reset_info, lone_device.hot_reset):
        with pytest.raises(IoctlError, match="neither the bus nor the slot") as caught:
            ask()
        assert caught.value.errno == errno.ENODEV
        assert "reset()" not in str(caught.value)
    assert lone_device.reset_methods == ()
    with pytest.raises(IoctlError, match="no way to be reset alone") as caught:
        lone_device.reset()
    assert "hot_reset()" not in str(caught.value)
    with pytest.raises(ValueError, match="no reset method 'flr'; its methods: none"):
        lone_device.reset("flr")
    with pytest.raises(TypeError, match="named by a str"):
        lone_device.reset(5)  # type: ignore[arg-type]


def test_use_after_close(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    device.close()
    for use in (device.reset, device.hot_reset, device.hot_reset_info, lambda: device.reset("bus")):
        with pytest.raises(ClosedError):
            use()
