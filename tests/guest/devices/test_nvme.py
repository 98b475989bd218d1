"""An NVMe controller: DMA by its admin queue, MSI-X, and resets that it shows."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from pyiommufd import IOAS, IOMMUFD, AccessDeniedError, Device, EventFD, IoctlError, RegionFaultError
from pyiommufd.kernel.device.config_space import CapabilityID, ExtendedCapabilityID
from pyiommufd.kernel.device.device_info import DeviceFlag, MmapArea, MSIXMappable
from pyiommufd.testing.drivers.nvme import NvmeDriver
from tests.guest.devices.factories import Binder, Claimer
from tests.patience import patience, until

NVME = (0x1B36, 0x0010)
SERIAL = "pyiommufd-7"
TABLE_PAGE = 0x2000
VERSION = 0x08


@pytest.fixture
def nvme(bind: Binder) -> Device:
    return bind(*NVME)


@pytest.fixture
def attached(nvme: Device, ioas: IOAS) -> Device:
    nvme.attach(ioas)
    return nvme


@pytest.mark.parametrize("use_interrupt", [True, False])
def test_identify(attached: Device, ioas: IOAS, use_interrupt: bool) -> None:
    with NvmeDriver(attached, ioas, use_interrupt=use_interrupt) as driver:
        # Round the queue and past its end.
        for _ in range(20):
            identity = driver.identify()
            assert (identity.serial, identity.vendor_id) == (SERIAL, 0x1B36)
            assert identity.model.startswith("QEMU NVMe")
            assert identity.firmware
        assert attached.interrupts.msix.enabled == use_interrupt
    assert ioas.unmap_all() == 0
    assert not attached.interrupts.enabled


def test_command_that_the_controller_refuses(attached: Device, ioas: IOAS) -> None:
    with NvmeDriver(attached, ioas) as driver:
        with pytest.raises(OSError, match="command 0xff with status"):
            driver.admin(0xFF, (0, 0, 0, 0, 0, 0))
        assert driver.identify().serial == SERIAL


def test_without_bus_mastering_nothing_comes(attached: Device, ioas: IOAS) -> None:
    with NvmeDriver(attached, ioas) as driver:
        driver._seconds = 1
        attached.bus_master = False
        with pytest.raises(TimeoutError, match="bus_master on"):
            driver.identify()
        driver._seconds = 10


def test_configuration_and_capabilities(nvme: Device) -> None:
    assert nvme.config.size == 4096
    found = {one.id: one for one in nvme.config.capabilities()}
    assert {CapabilityID.PCIE, CapabilityID.MSIX, CapabilityID.PM} <= set(found)
    assert nvme.config.find(ExtendedCapabilityID.SRIOV) is None
    assert nvme.info().flags & DeviceFlag.RESET
    assert nvme.interrupts.msix.count == (nvme.config.read16(found[CapabilityID.MSIX].offset + 2) & 0x7FF) + 1


def test_page_of_the_msix_table(nvme: Device) -> None:
    """Linux lets it be mapped; by read it shows nothing, and takes nothing by write."""
    region = nvme.region(0)
    msix = nvme.config.find(CapabilityID.MSIX)
    assert msix is not None
    table = nvme.config.read32(msix.offset + 4)
    assert table == TABLE_PAGE
    assert region.capabilities == (MSIXMappable(),)
    assert region.mappable == (MmapArea(0, region.size),)
    nvme.interrupts.msix.enable(2)
    with region.map(TABLE_PAGE, 32) as window:
        entries = [window.read32(offset) for offset in (0, 4, 8, 12)]
    assert entries[0] != 0xFFFF_FFFF
    assert region.read(TABLE_PAGE, 16) == b"\xff" * 16
    with pytest.raises(IoctlError, match="EINVAL"):
        region.ioeventfd(TABLE_PAGE, 4, 0)
    # What could not be mapped before Linux 4.16.
    older = nvme.region(0)
    older.capabilities = ()
    assert older.mappable == (
        MmapArea(0, TABLE_PAGE),
        MmapArea(TABLE_PAGE + 0x1000, region.size - TABLE_PAGE - 0x1000),
    )
    with pytest.raises(ValueError, match=r"these parts can: 0x0\.\.0x1fff, 0x3000\.\."):
        older.map(0, region.size)
    with older.map() as window:
        assert window.length == TABLE_PAGE


def test_msix_vectors_come_and_go(nvme: Device) -> None:
    msix = nvme.interrupts.msix
    vectors = msix.enable(4)
    assert [vector.vector for vector in vectors] == [0, 1, 2, 3]
    msix.trigger()
    assert [vector.take() for vector in vectors] == [1, 1, 1, 1]
    more = msix.resize(9)
    assert more[:4] == vectors
    msix.trigger(3, 6)
    assert [vector.take() for vector in more] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    fewer = msix.resize(2)
    assert fewer == vectors[:2]
    assert [vector.closed for vector in more] == [False] * 2 + [True] * 7
    msix.trigger()
    assert [vector.take() for vector in fewer] == [1, 1]
    again = msix.resize(3)
    again[0].close()
    msix.trigger()
    assert [vector.take() for vector in again[1:]] == [1, 1]
    everything = nvme.interrupts.msix.count
    with pytest.raises(ValueError, match=f"1 to {everything} vectors"):
        msix.resize(everything + 1)
    msix.disable()
    assert len(msix.enable(everything)) == everything
    msix.trigger()
    assert [vector.take() for vector in msix.vectors] == [1] * everything


@pytest.mark.parametrize("method", [None, "flr"])
def test_reset_stops_the_controller_and_leaves_the_rest(attached: Device, ioas: IOAS, method: str | None) -> None:
    with NvmeDriver(attached, ioas) as driver:
        driver.identify()
        methods = attached.reset_methods
        assert "flr" in methods
        attached.reset(method)
        assert attached.reset_methods == methods
        assert not driver.enabled
        # Configuration, attachment and interrupts are as they were.
        assert attached.bus_master
        assert attached.page_table is ioas
        (vector,) = attached.interrupts.msix.vectors
        vector.trigger()
        assert vector.take() >= 1
    with NvmeDriver(attached, ioas) as driver:
        assert driver.identify().serial == SERIAL


def test_reset_while_another_thread_reads(nvme: Device) -> None:
    """An access during a reset waits for its end, or is refused; the process lives."""
    answers: Counter[object] = Counter()
    over = threading.Event()
    with nvme.region(0).map() as window:
        capabilities = window.read64(0)

        def read() -> None:
            while not over.is_set():
                try:
                    answers[window.read64(0)] += 1
                except Exception as error:
                    answers[type(error)] += 1

        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(20):
            nvme.reset()
        over.set()
        thread.join()
    assert answers[capabilities] > 20
    assert set(answers) <= {capabilities, 0xFFFF_FFFF_FFFF_FFFF, RegionFaultError}, answers


def test_hot_reset_takes_the_whole_bus(bind: Binder, ioas: IOAS) -> None:
    """Two controllers behind one bridge: what is asked of one happens to both."""
    first, second = bind(*NVME, 1), bind(*NVME, 2)
    for device in (first, second):
        device.attach(ioas)
    with NvmeDriver(first, ioas) as one, NvmeDriver(second, ioas, use_interrupt=False) as other:
        assert [driver.identify().serial for driver in (one, other)] == ["first", "second"]
        assert [dependent.id for dependent in first.hot_reset().devices] == [first.id, second.id]
        assert [one.enabled, other.enabled] == [False, False]
        assert first.bus_master
        assert second.bus_master
        assert second.page_table is ioas
    with NvmeDriver(second, ioas) as other:
        assert other.identify().serial == "second"


def test_hot_reset_with_a_neighbour_bound_elsewhere(bind: Binder, claim: Claimer) -> None:
    """The group is one iommufd's: the neighbour, bound nowhere, is owned all the same, and reset unnamed."""
    first = bind(*NVME, 1)
    info = first.hot_reset()
    assert {dependent.id for dependent in info.devices} == {first.id, None}
    assert info.not_owned == ()
    with IOMMUFD() as other, pytest.raises(AccessDeniedError):
        other.bind(claim(*NVME, 2))


def test_d3hot_and_back(attached: Device, ioas: IOAS) -> None:
    low_power = attached.low_power
    with attached.region(0).map() as window, EventFD() as woken:
        version = window.read32(VERSION)
        states = [low_power.power_state]
        assert low_power.enter(wakeup=woken) is woken
        until(lambda: low_power.asleep, lambda: low_power)
        states.append(low_power.power_state)
        with pytest.raises(RegionFaultError):
            window.read32(VERSION)
        assert woken.take() == 0
        assert int.from_bytes(attached.region(0).read(VERSION, 4), "little") == version
        assert woken.wait(patience()) == 1
        states.append(low_power.power_state)
        assert states == ["D0", "D3hot", "D0"]
        assert window.read32(VERSION) == version
    assert attached.bus_master
    with NvmeDriver(attached, ioas) as driver:
        assert driver.identify().serial == SERIAL


def test_without_wakeup_it_goes_back_to_d3hot(nvme: Device) -> None:
    nvme.low_power.enter()
    for _ in range(2):
        until(lambda: nvme.low_power.power_state == "D3hot", lambda: nvme.low_power.power_state)
        nvme.region(0).read(VERSION, 4)
    nvme.low_power.exit()
    assert nvme.low_power.power_state == "D0"
