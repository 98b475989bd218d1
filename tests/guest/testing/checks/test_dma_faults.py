"""Real DMA faults, as objects, and the sets of devices that requester ids stand for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyiommufd import IOAS, Device, DMABuffer, DMAMapping, HostDevice, find_group
from pyiommufd.testing.checks.dma_faults import Access, DMAFaults
from pyiommufd.testing.drivers.edu import EduDriver
from tests.patience import patience

pytest_plugins = ["pytester"]

NOWHERE = 0x200000


@pytest.fixture
def faults() -> Iterator[DMAFaults]:
    """None of the faults of earlier tests stands in the way of this test's lines."""
    DMAFaults.wait_for_rate_limit()
    with DMAFaults() as faults:
        yield faults


def provoke(device: Device, access: Access) -> None:
    with EduDriver(device) as edu:
        assert device.bus_master
        copy = edu.copy_out if access is Access.WRITE else edu.copy_in
        copy(NOWHERE, 64)


@pytest.mark.long
@pytest.mark.parametrize("access", list(Access))
def test_fault_of_a_device_alone(faults: DMAFaults, lone_device: Device, ioas: IOAS, access: Access) -> None:
    lone_device.attach(ioas)
    provoke(lone_device, access)
    fault = faults.wait(seconds=patience(60))
    assert fault is not None
    assert fault.requester == lone_device.name
    assert fault.devices == (lone_device.host,)
    assert (fault.address, fault.access, fault.pasid) == (NOWHERE, access, None)
    assert "0x200000" in fault.line.text
    assert fault.line.text.endswith(fault.reason)
    assert faults.of(lone_device.host) == faults.of(lone_device.name) == faults.faults == (fault,)


@pytest.mark.long
def test_fault_behind_a_bridge_names_all_that_are_behind_it(
    faults: DMAFaults, device: Device, ioas: IOAS, lone_device: Device, bridge: HostDevice
) -> None:
    device.attach(ioas)
    provoke(device, Access.WRITE)
    fault = faults.wait(seconds=patience(60))
    assert fault is not None
    assert device.host.group_id is not None
    behind = tuple(one for one in find_group(device.host.group_id).devices if one != bridge)
    assert len(behind) == 3
    assert fault.requester not in [one.name for one in behind]
    assert fault.devices == behind
    assert fault.address == NOWHERE
    assert faults.of(device.host) == (fault,)
    assert faults.of(bridge) == ()
    assert faults.of(lone_device.host) == ()


@pytest.mark.long
def test_dma_that_is_let_through_is_no_fault(
    faults: DMAFaults, lone_device: Device, ioas: IOAS, mapping: DMAMapping, buffer: DMABuffer
) -> None:
    lone_device.attach(ioas)
    with EduDriver(lone_device) as edu:
        edu.copy_out(mapping.iova, 64)
    assert faults.wait(seconds=0.1) is None


def test_wait_takes_the_fault_that_is_asked_for_and_clear_forgets(
    faults: DMAFaults, lone_device: Device, ioas: IOAS
) -> None:
    lone_device.attach(ioas)
    provoke(lone_device, Access.WRITE)
    provoke(lone_device, Access.READ)
    read = faults.wait(lambda fault: fault.access is Access.READ, seconds=patience(60))
    assert read is not None
    assert read.access is Access.READ
    assert [fault.access for fault in faults.faults] == [Access.WRITE, Access.READ]
    faults.clear()
    assert faults.faults == ()


@pytest.mark.long
def test_waiting_for_the_rate_limit_lets_the_next_line_through(
    faults: DMAFaults, lone_device: Device, ioas: IOAS
) -> None:
    lone_device.attach(ioas)
    # More than the kernel logs, three in five seconds, however slow the machine is.
    with EduDriver(lone_device) as edu:
        for _ in range(12):
            edu.copy_out(NOWHERE, 64)
    assert faults.wait(seconds=patience(60)) is not None
    assert len(faults.faults) < 12, "the kernel's limit, which the collector has to live with, has changed"
    faults.wait_for_rate_limit()
    faults.clear()
    provoke(lone_device, Access.WRITE)
    assert faults.wait(seconds=patience(60)) is not None


# The fixture dma_faults


@pytest.mark.long
def test_fixture_collects_and_dmesg_lets_it_pass(pytester: pytest.Pytester) -> None:
    DMAFaults.wait_for_rate_limit()
    pytester.makepyfile("""
        from tests.patience import patience

        def provoke(edu, ioas):
            edu.device.attach(ioas)
            edu.copy_out(0x200000, 64)

        def test_judged(dmesg, dma_faults, edu, ioas):
            provoke(edu, ioas)
            fault = dma_faults.wait(seconds=patience(60))
            assert fault.devices == (edu.device.host,)

        def test_not_judged(dmesg, edu, ioas):
            provoke(edu, ioas)
    """)
    arguments = ("-p", "pyiommufd.testing.plugin.fixtures", "-p", "no:cacheprovider", "-Werror")
    pytester.runpytest_inprocess(*arguments).assert_outcomes(passed=2, errors=1)
