"""What the core tests share: what this machine has, whatever its kernel, QEMU and IOMMU are.

A claim lasts one test here: other tests of the same run take the same devices. A test that asks for what the machine
lacks is skipped, and tests/runner/core_tests.py says on which kinds of machine each of them must not be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from pyiommufd import (
    IOMMUFD,
    Claim,
    Device,
    Group,
    HostDevice,
    IoctlError,
    find_group,
    list_devices,
    plan_claim,
    recover,
)
from pyiommufd.host import drivers
from pyiommufd.testing.checks.dma_faults import DMAFault, parse_fault
from pyiommufd.testing.checks.dmesg import KernelLog
from pyiommufd.testing.drivers import edu as edu_module
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.guest.guest import CONFIGURATION_VARIABLE
from pyiommufd.testing.provision.kernels import release_order
from tests.patience import until
from tests.runner.core_tests import limits


@dataclass(frozen=True)
class CoreMachine:
    """The machine as it was before the first test.

    Attributes:
        kind: The kind of its IOMMU, as `pyiommufd guest --iommu` takes it.
        edus: Its edu devices.
        alone: The first of them that is alone in its IOMMU group.
        shared: The group that several of them are in.
    """

    kind: str
    edus: tuple[HostDevice, ...]
    alone: HostDevice | None
    shared: Group | None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What this kernel is known not to do is asked for all the same: it has to be refused."""
    described = os.environ.get(CONFIGURATION_VARIABLE)
    if described is None:
        return
    known = limits(json.loads(described)["iommu"], release_order(os.uname().release))
    for item in items:
        if reason := known.get(f"{item.path.stem}::{item.name}"):
            item.add_marker(pytest.mark.xfail(raises=IoctlError, reason=reason, strict=True))


def _edus() -> tuple[HostDevice, ...]:
    ids = (edu_module.VENDOR_ID, edu_module.DEVICE_ID)
    return tuple(device for device in list_devices("pci") if (device.vendor_id, device.device_id) == ids)


@pytest.fixture(scope="session")
def core_machine() -> CoreMachine:
    described = os.environ.get(CONFIGURATION_VARIABLE)
    if described is None:
        pytest.exit("these tests are for a guest; run: pyiommufd guest -- python -m pytest tests/guest/core", 3)
    recover()
    kind = json.loads(described)["iommu"]
    edus = _edus()
    if kind == "virtio" and all(device.group_id is None for device in edus):
        # In older kernels (6.12) firmware's word on which IOMMU covers a device is looked up by the first probe of a
        # driver: until then the device has no group.
        for device in edus:
            drivers.set_driver_override(device, "pci-stub")
            drivers.bind(device, "pci-stub")
            drivers.unbind(device.refreshed())
            drivers.set_driver_override(device, None)
        edus = _edus()
    groups = [device.group for device in edus]
    lone = [device for device, group in zip(edus, groups, strict=True) if group and len(group.devices) == 1]
    shared = [group for group in groups if group and len(set(group.devices) & set(edus)) > 1]
    return CoreMachine(kind, edus, lone[0] if lone else None, shared[0] if shared else None)


@pytest.fixture(scope="session", autouse=True)
def right_machine(core_machine: CoreMachine) -> None:
    """Any guest will do."""


@pytest.fixture
def kind(core_machine: CoreMachine) -> str:
    """The kind of this machine's IOMMU."""
    return core_machine.kind


@pytest.fixture
def all_edus(core_machine: CoreMachine) -> tuple[HostDevice, ...]:
    return core_machine.edus


@pytest.fixture
def members() -> Callable[[Group], dict[str, tuple[str | None, str | None]]]:
    """Driver and override of each member of a group, as they are now."""

    def members(group: Group) -> dict[str, tuple[str | None, str | None]]:
        now = find_group(group.id).devices
        return {device.name: (device.driver, drivers.driver_override(device)) for device in now}

    return members


@pytest.fixture
def lone(core_machine: CoreMachine) -> HostDevice:
    """An edu device alone in its group, on no driver."""
    if core_machine.alone is None:
        pytest.skip("no edu device here is alone in an IOMMU group")
    return core_machine.alone


@pytest.fixture
def lone_claim(lone: HostDevice) -> Iterator[Claim]:
    with plan_claim(lone).apply() as claim:
        yield claim


@pytest.fixture
def device(lone_claim: Claim, iommufd: IOMMUFD, lone: HostDevice) -> Iterator[Device]:
    """The edu device that is alone, bound, and able to do DMA as far as it is up to the device."""
    with_master = iommufd.bind(lone)
    with_master.bus_master = True
    yield with_master
    with_master.close()  # before the claim is given back: the device could not leave its driver


@pytest.fixture
def edu(device: Device) -> Iterator[EduDriver]:
    with EduDriver(device) as driver:
        yield driver


@pytest.fixture
def shared(core_machine: CoreMachine) -> Group:
    """A group with several edu devices and one that is on a host driver."""
    if core_machine.shared is None:
        pytest.skip("no IOMMU group here has several edu devices")
    return core_machine.shared


@pytest.fixture
def shared_edus(shared: Group, core_machine: CoreMachine) -> tuple[HostDevice, ...]:
    return tuple(device for device in core_machine.edus if device in shared.devices)


@pytest.fixture
def host_driven(shared: Group) -> HostDevice:
    """The member of the shared group that is on a host driver."""
    (device,) = shared.blockers
    return device


@pytest.fixture(scope="session")
def bridged_dma(core_machine: CoreMachine) -> None:
    """DMA from behind the PCIe-to-PCI bridge, which not every machine has: asked of the host driver's device there."""
    if core_machine.shared is None:
        pytest.skip("no IOMMU group here has several edu devices")
    (host_driven,) = core_machine.shared.blockers
    code = "print(len(open('/dev/hwrng', 'rb', 0).read(16)))"
    with (
        KernelLog(from_start=True) as log,
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process,
    ):
        # Its driver waits for good for what the device could not write, and the kernel has said so when it was probed.
        faults: list[DMAFault] = []

        def known() -> bool:
            faults.extend(fault for line in log.read() if (fault := parse_fault(line)) and host_driven in fault.devices)
            return process.poll() is not None or bool(faults)

        until(known, "data of the host driver's device, or the fault of its DMA")
        if process.poll() is None:
            process.kill()
            pytest.skip("no DMA arrives from behind the PCIe-to-PCI bridge, not that of its host driver either")
        assert process.stdout is not None
        assert process.stdout.read().strip() == b"16"


@pytest.fixture
def shared_claim(shared_edus: tuple[HostDevice, ...]) -> Iterator[Claim]:
    with plan_claim(shared_edus[0]).apply() as claim:
        yield claim


@pytest.fixture
def pair(shared_claim: Claim, iommufd: IOMMUFD, shared_edus: tuple[HostDevice, ...]) -> Iterator[tuple[Device, Device]]:
    """Two edu devices of the shared group, bound to one iommufd in this order."""
    bound = [iommufd.bind(device) for device in shared_edus[:2]]
    for one in bound:
        one.bus_master = True
    yield bound[0], bound[1]
    for one in reversed(bound):
        one.close()


@pytest.fixture
def edus(bridged_dma: None, pair: tuple[Device, Device]) -> Iterator[tuple[EduDriver, EduDriver]]:
    with EduDriver(pair[0]) as first, EduDriver(pair[1]) as second:
        yield first, second
