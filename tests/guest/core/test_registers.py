"""Registers of a bound device, by the kernel and through a window."""

from __future__ import annotations

import pytest

from pyiommufd import ClosedError, Device
from pyiommufd.testing.drivers.edu import EduDriver

LIVENESS = 4


def test_the_configuration_space_is_read_by_the_kernel(device: Device) -> None:
    assert device.config.read(0, 4) == bytes.fromhex("3412e811")
    assert device.bus_master
    device.bus_master = False
    assert not device.config.read(4, 1)[0] & 4


@pytest.mark.long
def test_a_window_and_the_kernel_see_the_same_registers(device: Device, edu: EduDriver) -> None:
    region = device.region(0)
    assert region.size == 1 << 20
    assert edu.identification == int.from_bytes(region.read(0, 4), "little") == 0x010000ED
    assert edu.invert(0x12345678) == 0xEDCBA987
    region.write(LIVENESS, (0x0F0F0F0F).to_bytes(4, "little"))
    with region.map() as window:
        assert window.read32(LIVENESS) == 0xF0F0F0F0


def test_a_window_ends_at_its_length_and_with_its_device(device: Device) -> None:
    region = device.region(0)
    window = region.map(0, 4096)
    with pytest.raises(ValueError, match=r"4096|0x1000"):
        window.read32(4096)
    with pytest.raises(ValueError, match="within"):
        region.read(region.size - 2, 4)
    device.close()
    with pytest.raises(ClosedError):
        window.read32(0)
    with pytest.raises(ClosedError):
        region.read(0, 4)
