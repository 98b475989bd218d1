"""Twins of vfio_pci_device_test.c: configuration space, BARs, reset, interrupts."""

from __future__ import annotations

import pytest

from pyiommufd import HostDevice, UnsupportedError
from pyiommufd.kernel.device.config_space import Command
from pyiommufd.kernel.device.device_info import DeviceFlag
from pyiommufd.kernel.device.region_bytes import RegionFlag
from pyiommufd.kernel.interrupts.interrupt import IRQIndex
from pyiommufd.kernel.interrupts.irq import IRQ
from tests.conformance.cases import Route, twin
from tests.conformance.vfio.conftest import Space

BARS = range(6)
MOST_VECTORS = 16
RING_ADDRESS = 0x3800  # of the igb: any register that holds what is written, and that a reset clears


@twin("vfio_pci_device_test.config_space_read_write", Route.PUBLIC)
def test_config_space(attached: Space, host: HostDevice) -> None:
    device = attached.device
    config = device.config
    assert (config.vendor_id, config.device_id) == (host.vendor_id, host.device_id)
    before = config.command
    assert Command.MASTER not in before
    assert not device.bus_master
    device.bus_master = True
    assert config.command == before | Command.MASTER
    config.command = before
    assert not device.bus_master


@twin("vfio_pci_device_test.validate_bars", Route.PUBLIC)
def test_bars(attached: Space) -> None:
    device = attached.device
    assert RegionFlag.MMAP not in device.config.flags
    mapped = 0
    for region in map(device.region, BARS):
        if RegionFlag.MMAP not in region.flags:
            assert region.mappable == ()
            with pytest.raises(UnsupportedError):
                region.map()
            continue
        assert region.size
        with region.map() as window:
            assert window.length == region.size
            window.read32(region.size - 4)
        mapped += 1
    assert mapped


@twin("vfio_pci_device_test.reset", Route.PUBLIC)
def test_reset(attached: Space) -> None:
    device = attached.device
    assert DeviceFlag.RESET in device.info().flags
    with device.region(0).map() as registers:
        registers.write32(RING_ADDRESS, 0x1000)
        assert registers.read32(RING_ADDRESS) == 0x1000
        device.reset()
        assert registers.read32(RING_ADDRESS) == 0


@pytest.fixture(params=[IRQIndex.MSI, IRQIndex.MSIX], ids=["msi", "msix"])
def irq(request: pytest.FixtureRequest, attached: Space) -> IRQ:
    return attached.device.interrupts[request.param]


@twin("vfio_pci_irq_test.enable_trigger_disable", Route.PUBLIC)
def test_interrupts(irq: IRQ) -> None:
    vectors = irq.enable(min(irq.count, MOST_VECTORS))
    assert [vector.take() for vector in vectors] == [0] * len(vectors)
    for vector in vectors:
        vector.trigger()
        # Once, and no other one.
        assert [each.take() for each in vectors] == [int(each is vector) for each in vectors]
    irq.disable()
    assert all(vector.closed for vector in vectors)
    # It is off in the kernel, too: the other type excludes this one.
    other = irq.device.interrupts[IRQIndex.MSI if irq.index == IRQIndex.MSIX else IRQIndex.MSIX]
    other.enable()
    other.disable()
