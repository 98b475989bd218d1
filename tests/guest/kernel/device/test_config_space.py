"""The configuration space by the names of its registers, and its capabilities."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pyiommufd import ClosedError, Device, RegionFaultError
from pyiommufd.kernel.device.config_space import CapabilityID, Command, ExtendedCapabilityID, PCICapability
from pyiommufd.kernel.device.device_info import DeviceFlag


def test_registers_by_name(device: Device) -> None:
    config = device.config
    assert (config.vendor_id, config.device_id) == (0x1234, 0x11E8)
    assert config.class_code == device.host.class_code == 0x00FF00
    assert config.revision_id == 0x10
    assert (config.subsystem_vendor_id, config.subsystem_id) == (0x1AF4, 0x1100)
    assert config.header_type == 0
    assert config.interrupt_pin == 1
    assert config.status & 0x10
    assert config.read32(0) == 0x11E8_1234
    assert Path(device.host.sys_path / "config").read_bytes()[:4] == config.read(0, 4)


def test_writes(device: Device) -> None:
    config = device.config
    before = config.interrupt_line
    config.interrupt_line = 0x0B
    assert config.interrupt_line == 0x0B
    config.write8(0x3C, before)
    assert config.read8(0x3C) == before
    for write, value in ((config.write8, 256), (config.write16, 1 << 16), (config.write32, -1)):
        with pytest.raises(ValueError, match="fit"):
            write(0x3C, value)


def test_command_register(device: Device) -> None:
    config = device.config
    assert config.command & Command.MEMORY
    config.set_command(Command.MASTER | Command.INTX_DISABLE, True)
    assert device.bus_master
    config.set_command(Command.INTX_DISABLE, False)
    assert Command.INTX_DISABLE not in config.command
    assert device.bus_master
    config.command = Command.MEMORY
    assert config.read16(4) == Command.MEMORY
    assert device.memory_decode


def test_two_threads_change_two_bits(device: Device) -> None:
    device.config.set_command(Command.MASTER | Command.SERR, False)

    def flip(bit: Command) -> None:
        for turn in range(301):
            device.config.set_command(bit, not turn % 2)

    threads = [threading.Thread(target=flip, args=(bit,)) for bit in (Command.MASTER, Command.SERR)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    command = device.config.command
    device.config.set_command(Command.SERR, False)
    assert Command.MASTER in command
    assert Command.SERR in command


def test_capabilities_of_edu(device: Device) -> None:
    config = device.config
    # A conventional PCI device: no extended ones.
    assert config.capabilities() == (PCICapability(CapabilityID.MSI, 0x40),)
    assert config.find(CapabilityID.MSI) == PCICapability(CapabilityID.MSI, 0x40)
    assert config.find(CapabilityID.MSIX) is None
    assert config.find(ExtendedCapabilityID.AER) is None


def test_memory_decode(device: Device) -> None:
    with device.region(0).map() as window:
        device.memory_decode = False
        assert not device.memory_decode
        with pytest.raises(RegionFaultError):
            window.read32(0)
        device.memory_decode = True
        assert window.read32(0) & 0xFF == 0xED


def test_info(device: Device) -> None:
    info = device.info()
    assert info.flags & DeviceFlag.PCI
    assert not info.flags & DeviceFlag.RESET
    assert info.num_regions == 9
    assert info.num_irqs == 5
    assert info.capabilities == ()
    device.close()
    with pytest.raises(ClosedError):
        device.info()
