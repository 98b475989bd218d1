"""An e1000e: INTx, MSI and MSI-X on one device, and BARs of memory and of ports."""

from __future__ import annotations

import pytest

from pyiommufd import IOAS, Device, DMABuffer, InUseError, IoctlError, UnsupportedError
from pyiommufd.kernel.device.device_info import MSIXMappable
from pyiommufd.kernel.interrupts.interrupt import IRQFlag
from pyiommufd.testing.drivers.e1000e import LARGEST, SMALLEST, E1000eDriver
from tests.guest.devices.factories import Binder
from tests.patience import patience

E1000E = (0x8086, 0x10D3)
PORTS, TABLE, ROM = 2, 3, 6


@pytest.fixture
def e1000e(bind: Binder) -> Device:
    return bind(*E1000E)


def test_one_of_three_types_at_a_time(e1000e: Device) -> None:
    interrupts = e1000e.interrupts
    types = (interrupts.intx, interrupts.msi, interrupts.msix)
    assert [irq.count for irq in types] == [1, 1, 5]
    for on in types:
        vectors = on.enable(on.count)
        on.trigger()
        assert [vector.wait(patience()) for vector in vectors] == [1] * on.count
        for other in types:
            if other is not on:
                with pytest.raises(IoctlError, match=rf"device\.interrupts\.{on.name.lower()}\.disable"):
                    other.enable()
        with pytest.raises(InUseError):
            on.enable()
        on.disable()
        assert all(vector.closed for vector in vectors)
    assert interrupts.enabled == ()


def test_vectors_that_are_added_to_msix(e1000e: Device) -> None:
    """On Linux 6.4 and newer they are added one by one; where not, by turning MSI-X off and on."""
    msix = e1000e.interrupts.msix
    first = msix.enable(1)
    msix.trigger()
    everything = msix.resize(5)
    assert everything[:1] == first
    msix.trigger()
    # What had come before is still there.
    assert [vector.take() for vector in everything] == [2, 1, 1, 1, 1]
    assert IRQFlag.MASKABLE not in msix.flags


def test_regions(e1000e: Device) -> None:
    registers, ports, table = (e1000e.region(index) for index in (0, PORTS, TABLE))
    assert registers.capabilities == ()
    assert registers.mappable[0].length == registers.size
    assert table.capabilities == (MSIXMappable(),)
    # Ports are not memory: the kernel accesses them.
    assert ports.size == 32
    assert ports.mappable == ()
    with pytest.raises(UnsupportedError, match=r"use read\(\) and write\(\)"):
        ports.map()
    assert len(ports.read(0, 4)) == 4
    rom = e1000e.region(ROM)
    assert not rom.size or rom.read(0, 2) == b"\x55\xaa"


def test_copies(e1000e: Device, ioas: IOAS) -> None:
    """By its DMA, round the rings and past their end; nothing while it is detached."""
    e1000e.attach(ioas)
    memory = DMABuffer(2 * 4096)
    mapping = ioas.map(memory)
    with E1000eDriver(e1000e, ioas) as driver:
        for number in range(70):
            length = (SMALLEST, LARGEST, 300)[number % 3]
            memory[:length] = bytes([1 + number]) * length
            driver.copy(mapping.iova, mapping.iova + 4096, length)
            assert memory[4096 : 4096 + length] == memory[:length]
        memory[:512] = b"s" * 512
        e1000e.detach()
        with pytest.raises(TimeoutError, match="receive a frame"):
            driver.copy(mapping.iova, mapping.iova + 4096, 512, seconds=1)
        assert memory[4096 : 4096 + 512] != b"s" * 512
        e1000e.attach(ioas)
        for length in (SMALLEST - 1, LARGEST + 1):
            with pytest.raises(ValueError, match="a frame has"):
                driver.copy(0, 0, length)
    mapping.unmap()
