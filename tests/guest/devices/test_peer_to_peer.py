"""DMA of an edu device into BARs of other devices: memory, and registers of a controller that is reset by itself."""

from __future__ import annotations

import os

import pytest

from pyiommufd import IOAS, DMABuffer, UnsupportedError
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.devices.factories import Binder

EDU, NVME, IVSHMEM = (0x1234, 0x11E8), (0x1B36, 0x0010), (0x1AF4, 0x1110)
MEMORY, PEER = 0x100000, 0x400000
PAGE = 4096
QUEUE = 0x28
"""An NVMe controller's register for the address of a queue: 8 bytes, whose page bits stay what was written."""


def test_memory_of_another_device(bind: Binder, ioas: IOAS) -> None:
    edu, peer = bind(*EDU), bind(*IVSHMEM)
    edu.attach(ioas)
    memory = DMABuffer(PAGE)
    ioas.map(memory, iova=MEMORY)
    bar = peer.region(2)
    with bar.export_dma_buf(PAGE) as dma_buf:
        ioas.map_file(dma_buf, bar.size - 2 * PAGE, start=PAGE, iova=PEER)
    with EduDriver(edu) as driver, bar.map() as window:
        sent = os.urandom(PAGE // 2)
        memory[: len(sent)] = sent
        driver.copy_in(MEMORY, len(sent))
        driver.copy_out(PEER + 64, len(sent))
        assert window.read(2 * PAGE + 64, len(sent)) == sent
        back = os.urandom(len(sent))
        window.write(bar.size - PAGE, back)
        driver.copy_in(PEER + bar.size - 3 * PAGE, len(back))
        driver.copy_out(MEMORY, len(back))
        assert memory[: len(back)] == back


def test_reset_of_the_device_whose_registers_are_mapped(bind: Binder, ioas: IOAS) -> None:
    edu, nvme = bind(*EDU), bind(*NVME)
    edu.attach(ioas)
    memory = DMABuffer(PAGE)
    ioas.map(memory, iova=MEMORY)
    bar = nvme.region(0)
    with EduDriver(edu) as driver, bar.map() as registers, bar.export_dma_buf(0, PAGE) as dma_buf:
        mapping = ioas.map_file(dma_buf, PAGE, iova=PEER)

        def write(value: int) -> int:
            memory[:8] = value.to_bytes(8, "little")
            driver.copy_in(MEMORY, 8)
            driver.copy_out(PEER + QUEUE, 8)
            return registers.read64(QUEUE)

        registers.write64(QUEUE, 0)
        seen = [mapping.revoked]
        assert write(0x1234_5000) == 0x1234_5000
        nvme.reset()
        assert [*seen, mapping.revoked] == [False, True]
        registers.write64(QUEUE, 0)
        assert write(0x5678_9000) == 0
        mapping.unmap()
        mapping = ioas.map_file(dma_buf, PAGE, iova=PEER)
        assert write(0x5678_9000) == 0x5678_9000
        assert not mapping.revoked


@pytest.mark.parametrize(
    ("ids", "index", "why"),
    [
        ((0x8086, 0x10D3), 2, "it is an I/O BAR, which can never be a dma-buf"),  # an e1000e
        ((0x1AF4, 0x1110), 0, "it is smaller than a page, and so can never be a dma-buf"),  # an ivshmem
    ],
)
@pytest.mark.parametrize("arguments", [(), (0, PAGE), (0, 1)])
def test_bars_that_can_never_be_dma_bufs(
    bind: Binder, ids: tuple[int, int], index: int, why: str, arguments: tuple[int, ...]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        bind(*ids).region(index).export_dma_buf(*arguments)
    assert [cause.summary for cause in caught.value.causes] == [why]
