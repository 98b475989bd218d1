"""Twins of vfio_pci_driver_test.c: a device that copies memory by DMA, and sends interrupts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from pyiommufd import DMABuffer
from pyiommufd.testing.drivers.igb import LARGEST, MOST, IgbDriver
from tests.conformance.cases import Route, twin
from tests.conformance.vfio.conftest import Space
from tests.patience import patience

SIZE = 4 * LARGEST
TIMES = 10


@dataclass(frozen=True)
class Copier:
    """The device at work on memory: what is copied, where to, and a guard behind both.

    Attributes:
        igb: The device, driven.
        memory: `SIZE` bytes to be copied, as many to copy them to, and as many that nothing may touch.
        source: The iova of the first.
        destination: The iova of the second.
        unmapped: An iova where nothing is mapped.
    """

    igb: IgbDriver
    memory: DMABuffer
    source: int
    destination: int
    unmapped: int

    def fill(self) -> None:
        """Different bytes in each part."""
        self.memory[:] = b"x" * SIZE + b"y" * SIZE + b"z" * SIZE

    def copy(self, source: int, destination: int) -> None:
        """Copy `SIZE` bytes, with the interrupt masked; where that fails, have the device work again."""
        with self.igb.masked():
            for offset in range(0, SIZE, LARGEST):
                self.igb.copy(source + offset, destination + offset, LARGEST)

    def try_copy(self, source: int, destination: int) -> None:
        """The same where the IOMMU is in the way, of which not every such device tells."""
        try:
            self.copy(source, destination)
        except TimeoutError:
            self.igb.device.reset()
            self.igb.device.bus_master = True
            self.igb.restart()

    def check(self) -> None:
        """What is to be copied has been, nothing else has been touched, and no interrupt has come."""
        assert self.memory[:SIZE] == b"x" * SIZE
        assert self.memory[SIZE : 2 * SIZE] == b"x" * SIZE
        assert self.memory[2 * SIZE :] == b"z" * SIZE
        assert self.igb.interrupt.take() == 0


@contextlib.contextmanager
def copier(space: Space) -> Iterator[Copier]:
    """Start the device."""
    ioas = space.ioas
    space.device.bus_master = True
    with IgbDriver(space.device, ioas) as igb, DMABuffer(3 * SIZE) as memory:
        mapping = ioas.map(memory)
        unmapped = (ioas.iova_ranges()[-1].last + 1) // 2
        yield Copier(igb, memory, mapping.iova, mapping.iova + SIZE, unmapped)
        mapping.unmap()


@twin("vfio_pci_driver_test.init_remove", Route.PUBLIC)
def test_start_and_stop(space: Space) -> None:
    space.device.bus_master = True
    for _ in range(TIMES):
        with IgbDriver(space.device, space.ioas) as igb:
            igb.raise_interrupt()
            assert igb.interrupt.wait(patience()) == 1
        assert space.device.interrupts.enabled == ()
        assert space.ioas.unmap_all() == 0


@twin("vfio_pci_driver_test.memcpy_success", Route.PUBLIC)
def test_copy(space: Space) -> None:
    with copier(space) as copies:
        copies.fill()
        copies.copy(copies.source, copies.destination)
        copies.check()


@twin("vfio_pci_driver_test.memcpy_from_unmapped_iova", Route.PUBLIC)
def test_copy_from_nowhere(space: Space) -> None:
    with copier(space) as copies:
        copies.fill()
        copies.try_copy(copies.unmapped, copies.destination)
        assert copies.memory[:SIZE] == b"x" * SIZE
        assert copies.memory[2 * SIZE :] == b"z" * SIZE
        assert copies.igb.interrupt.take() == 0


@twin("vfio_pci_driver_test.memcpy_to_unmapped_iova", Route.PUBLIC)
def test_copy_to_nowhere(space: Space) -> None:
    with copier(space) as copies:
        copies.fill()
        before = copies.memory[:]
        copies.try_copy(copies.source, copies.unmapped)
        assert copies.memory[:] == before
        assert copies.igb.interrupt.take() == 0


@twin("vfio_pci_driver_test.send_msi", Route.PUBLIC)
def test_interrupt(space: Space) -> None:
    with copier(space) as copies:
        copies.igb.raise_interrupt()
        assert copies.igb.interrupt.wait(patience()) == 1


@twin("vfio_pci_driver_test.mix_and_match", Route.PUBLIC)
def test_everything_in_turn(space: Space) -> None:
    with copier(space) as copies:
        for _ in range(TIMES):
            copies.fill()
            copies.copy(copies.source, copies.destination)
            copies.check()
            copies.try_copy(copies.unmapped, copies.destination)
            copies.igb.raise_interrupt()
            assert copies.igb.interrupt.wait(patience()) == 1


@twin("vfio_pci_driver_test.memcpy_storm", Route.PUBLIC)
def test_as_many_copies_as_there_is_room_for(space: Space) -> None:
    with copier(space) as copies:
        copies.fill()
        copies.copy(copies.source, copies.destination)
        copies.memory[SIZE : SIZE + LARGEST] = bytes(LARGEST)
        with copies.igb.masked():
            copies.igb.copy(copies.source, copies.destination, LARGEST, count=MOST, seconds=60)
        copies.check()
