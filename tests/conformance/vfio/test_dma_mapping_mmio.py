"""Twins of vfio_dma_mapping_mmio_test.c: registers are no memory, and iommufd does not map them for DMA."""

from __future__ import annotations

import contextlib
import errno
import mmap

import pytest

from pyiommufd.kernel.device.region import Region
from pyiommufd.kernel.device.region_bytes import RegionFlag
from pyiommufd.uapi import raw
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import PAGE, refused
from tests.conformance.vfio.conftest import Space


@pytest.fixture
def bar(space: Space) -> Region:
    """The largest BAR that can be mapped, read and written."""
    wanted = RegionFlag.MMAP | RegionFlag.READ | RegionFlag.WRITE
    regions = [region for region in map(space.device.region, range(6)) if wanted in region.flags]
    assert regions
    return max(regions, key=lambda region: region.size)


def map_registers(bar: Region, length: int) -> mmap.mmap:
    """The registers as plain memory, which a `Window` is not."""
    return mmap.mmap(bar.device.fileno(), length, offset=bar.file_offset)


def check_refused(space: Space, registers: mmap.mmap) -> None:
    with refused(errno.EFAULT):
        space.ioas.map(registers)
    assert space.ioas.mappings == ()
    assert space.ioas.unmap_all() == 0


@twin("vfio_dma_mapping_mmio_test.map_full_bar", Route.PUBLIC)
def test_whole_bar(space: Space, bar: Region) -> None:
    with map_registers(bar, bar.size) as registers:
        check_refused(space, registers)


@twin("vfio_dma_mapping_mmio_test.map_partial_bar", Route.PUBLIC)
def test_part_of_a_bar(space: Space, bar: Region) -> None:
    assert bar.size >= 2 * PAGE
    with map_registers(bar, PAGE) as registers:
        check_refused(space, registers)


@twin("vfio_dma_mapping_mmio_test.map_bar_misaligned", Route.PUBLIC)
def test_bar_at_an_odd_address(space: Space, bar: Region) -> None:
    """At an address in the process that has not the alignment of the BAR: no large page can hold both."""
    with contextlib.ExitStack() as stack:
        registers = stack.enter_context(map_registers(bar, bar.size))
        for pages in range(1, 64):
            if raw.address_of(registers) % bar.size:
                break
            # The next mapping goes next to the last one, unless there is a gap that fits one of them.
            stack.enter_context(mmap.mmap(-1, pages * PAGE))
            registers = stack.enter_context(map_registers(bar, bar.size))
        assert raw.address_of(registers) % bar.size
        check_refused(space, registers)
