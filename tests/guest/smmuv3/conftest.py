"""Nested translation on Linux's SMMUv3 driver: the guest has to be ``pyiommufd guest --iommu smmuv3-nested``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from pyiommufd import HWPT, IOAS, VIOMMU, Device, DMABuffer, NestedHWPT, VDevice, VEventQueue, VEventType, VIOMMUType
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.guest.guest import CONFIGURATION_VARIABLE
from pyiommufd.testing.smmuv3 import PAGE, PageTables, stage1_entry
from tests.guest.conftest import DefaultMachine
from tests.guest.smmuv3.bench import DATA, DESCRIPTOR, PAGES, SOURCE, STREAM, TABLES, TARGET_DATA, Bench

KIND = "smmuv3-nested"


@pytest.fixture(scope="session", autouse=True)
def right_machine(default_machine: DefaultMachine) -> None:
    """The tests are on the machine that they are for."""
    described = os.environ.get(CONFIGURATION_VARIABLE)
    if described is None or json.loads(described)["iommu"] != KIND:
        pytest.exit(f"run: pyiommufd guest --iommu {KIND} -- python -m pytest tests/guest/smmuv3", 3)


@pytest.fixture
def parent(lone_device: Device, ioas: IOAS) -> HWPT:
    return lone_device.alloc_hwpt(ioas, nest_parent=True)


@pytest.fixture
def viommu(lone_device: Device, parent: HWPT) -> VIOMMU:
    return lone_device.alloc_viommu(parent, VIOMMUType.ARM_SMMUV3)


@pytest.fixture
def bench(lone_device: Device, ioas: IOAS, parent: HWPT, viommu: VIOMMU) -> Iterator[Bench]:
    """The two stages: `SOURCE` leads to page 0, `TARGET` to page 1. The device is attached to neither."""
    data, memory, descriptor = DMABuffer(PAGES * PAGE), DMABuffer(16 * PAGE), DMABuffer(PAGE)
    ioas.map(data, iova=DATA)
    target = ioas.map(data, iova=TARGET_DATA)
    ioas.map(memory, iova=TABLES)
    ioas.map(descriptor, iova=DESCRIPTOR)
    with EduDriver(lone_device) as driver:
        tables = PageTables(memory, TABLES)
        made = Bench(lone_device, ioas, parent, viommu, data, target, tables, descriptor, driver)
        made.describe()
        tables.map(SOURCE, DATA)
        made.lead(1)
        yield made


@pytest.fixture
def vdevice(viommu: VIOMMU, lone_device: Device) -> VDevice:
    return viommu.alloc_vdevice(lone_device, STREAM)


@pytest.fixture
def stage1(bench: Bench, vdevice: VDevice) -> NestedHWPT:
    """The VM's stage 1, attached."""
    nested = bench.viommu.alloc_nested(stage1_entry(DESCRIPTOR))
    bench.device.attach(nested)
    return nested


@pytest.fixture
def events(viommu: VIOMMU) -> VEventQueue:
    return viommu.alloc_event_queue(VEventType.ARM_SMMUV3, depth=16)
