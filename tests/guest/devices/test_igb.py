"""An igb: DMA both ways through descriptor rings, MSI-X."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pyiommufd import IOAS, DMABuffer
from pyiommufd.kernel.device.config_space import ExtendedCapabilityID
from pyiommufd.testing.drivers.igb import DEVICE_ID, LARGEST, MOST, SMALLEST, VENDOR_ID, IgbDriver
from tests.guest.devices.factories import Binder
from tests.patience import patience


@pytest.fixture
def igb(bind: Binder, ioas: IOAS) -> Iterator[IgbDriver]:
    device = bind(VENDOR_ID, DEVICE_ID)
    device.attach(ioas)
    with IgbDriver(device, ioas) as driver:
        yield driver


@pytest.fixture
def memory() -> DMABuffer:
    return DMABuffer(2 * 4096)


def test_copies(igb: IgbDriver, ioas: IOAS, memory: DMABuffer) -> None:
    choose = random.Random(1)  # noqa: S311 - to be repeatable
    mapping = ioas.map(memory)
    # So that those below go past the end of the rings.
    igb.copy(mapping.iova, mapping.iova + 4096, SMALLEST, count=MOST - 100)
    for length in (SMALLEST, LARGEST, *(choose.randint(SMALLEST, LARGEST) for _ in range(200))):
        data = choose.randbytes(length)
        memory[:length] = data
        memory[4096:] = bytes(4096)
        igb.copy(mapping.iova, mapping.iova + 4096, length)
        assert memory[4096 : 4096 + length] == data
        assert memory[4096 + length :].count(0) == 4096 - length
    mapping.unmap()


def test_interrupts(igb: IgbDriver, ioas: IOAS, memory: DMABuffer) -> None:
    mapping = ioas.map(memory)
    igb.copy(mapping.iova, mapping.iova + 4096, 512)
    assert igb.interrupt.wait(patience()) >= 1
    for _ in range(50):
        igb.interrupt.take()
        igb.raise_interrupt()
        assert igb.interrupt.wait(patience()) == 1
    mapping.unmap()


def test_masked_interrupts(igb: IgbDriver, ioas: IOAS, memory: DMABuffer) -> None:
    mapping = ioas.map(memory)
    memory[:512] = b"s" * 512
    with igb.masked():
        igb.copy(mapping.iova, mapping.iova + 4096, 512, count=10)
    assert memory[4096 : 4096 + 512] == b"s" * 512
    assert igb.interrupt.take() == 0
    igb.raise_interrupt()
    assert igb.interrupt.wait(patience()) == 1
    mapping.unmap()


def test_blocked_dma_and_restart(igb: IgbDriver, ioas: IOAS, memory: DMABuffer) -> None:
    mapping = ioas.map(memory)
    memory[:512] = b"s" * 512
    igb.device.detach()
    with pytest.raises(TimeoutError, match="receive a frame"):
        igb.copy(mapping.iova, mapping.iova + 4096, 512, seconds=1)
    assert memory[4096:].count(0) == 4096
    igb.device.attach(ioas)
    igb.device.reset()
    igb.device.bus_master = True
    igb.restart()
    igb.copy(mapping.iova, mapping.iova + 4096, 512)
    assert memory[4096 : 4096 + 512] == b"s" * 512
    mapping.unmap()


def test_copies_that_are_no_frames(igb: IgbDriver) -> None:
    for length in (0, SMALLEST - 1, LARGEST + 1):
        with pytest.raises(ValueError, match="a frame has"):
            igb.copy(0, 0, length)
    for count in (0, MOST + 1):
        with pytest.raises(ValueError, match="copies can be under way"):
            igb.copy(0, 0, LARGEST, count=count)


def test_extended_capabilities(igb: IgbDriver) -> None:
    config = igb.device.config
    assert config.find(ExtendedCapabilityID.AER) is not None
    assert config.find(ExtendedCapabilityID.SRIOV) is not None or config.find(ExtendedCapabilityID.ARI) is not None
