"""Low power, on a device that has no power states of its own: the kernel's side of it.

`tests/guest/devices/test_nvme.py` has one that goes to D3hot.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    ClosedError,
    Device,
    DMABuffer,
    DMAMapping,
    EventFD,
    HostDevice,
    IoctlError,
    RegionFaultError,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import Arrives
from tests.patience import patience, until

ID = 0x010000ED


def sleeps(device: Device) -> None:
    until(lambda: device.low_power.asleep, lambda: device.low_power)


def test_windows_fault_until_the_exit(device: Device) -> None:
    with device.region(0).map() as window:
        device.low_power.enter()
        with pytest.raises(RegionFaultError):
            window.read32(0)
        sleeps(device)
        assert repr(device.low_power) == f"<LowPower of {device.name}, asleep>"
        with pytest.raises(RegionFaultError, match=r": it sleeps; low_power\.exit\(\) wakes it$"):
            window.read32(0)
        seen = [device.low_power.asleep]
        device.low_power.exit()
        assert [*seen, device.low_power.asleep] == [True, False]
        assert window.read32(0) == ID
        device.low_power.exit()  # nothing to do


def test_without_wakeup_an_access_wakes_it_for_a_moment(device: Device) -> None:
    with device.region(0).map() as window:
        device.low_power.enter()
        uses: list[Callable[[], object]] = [lambda: device.region(0).read(0, 4), device.info, lambda: device.bus_master]
        for use in uses:
            sleeps(device)
            use()
            with pytest.raises(RegionFaultError):
                window.read32(0)
        sleeps(device)


@pytest.mark.parametrize("given", [True, False])
def test_wakeup_ends_it_and_is_signalled(device: Device, given: bool) -> None:
    mine = EventFD() if given else None
    with device.region(0).map() as window:
        woken = device.low_power.enter(wakeup=mine or True)
        assert (woken is mine) == given
        with woken:
            sleeps(device)
            with pytest.raises(RegionFaultError):
                window.read32(0)
            assert woken.take() == 0
            assert int.from_bytes(device.region(0).read(0, 4), "little") == ID
            assert woken.wait(patience()) == 1
            assert not device.low_power.asleep
            assert window.read32(0) == ID
            device.low_power.exit()
            assert woken.take() == 0


def test_wakeup_can_be_awaited(device: Device) -> None:
    async def wait() -> int:
        with device.low_power.enter(wakeup=True) as woken:
            await asyncio.to_thread(sleeps, device)
            device.info()
            async with asyncio.timeout(patience()):
                return await woken

    assert asyncio.run(wait()) == 1


def test_entered_twice(device: Device) -> None:
    device.low_power.enter()
    for wakeup in (False, True):
        with pytest.raises(IoctlError) as caught:
            device.low_power.enter(wakeup)
        assert caught.value.errno == errno.EINVAL
        assert "low_power.exit()" in caught.value.causes[0].fix
    device.low_power.exit()
    with EventFD() as first, EventFD() as second:
        device.low_power.enter(first)
        sleeps(device)
        device.low_power.enter(second)  # it wakes the device, which ends what was
        assert (first.take(), second.take()) == (1, 0)
        sleeps(device)


@pytest.mark.parametrize("wakeup", [1, None, "yes", 3.0])
def test_wrong_arguments(device: Device, wakeup: Any) -> None:
    with pytest.raises(TypeError, match="wakeup is True, False or an EventFD"):
        device.low_power.enter(wakeup)
    device.low_power.enter()
    device.low_power.exit()


def test_closed(device: Device) -> None:
    event = EventFD()
    event.close()
    with pytest.raises(ClosedError, match="EventFD"):
        device.low_power.enter(event)
    device.close()
    for wakeup in (False, True):
        with pytest.raises(ClosedError):
            device.low_power.enter(wakeup)
    with pytest.raises(ClosedError):
        device.low_power.exit()


def test_a_dma_buf_is_revoked_until_the_exit(device: Device, ioas: IOAS) -> None:
    with device.region(0).export_dma_buf() as dma_buf, EventFD() as woken:
        mapping = ioas.map_file(dma_buf, dma_buf.size)
        device.low_power.enter(woken)
        assert mapping.revoked
        sleeps(device)
        device.info()
        assert woken.wait(patience()) == 1
        with pytest.raises(IoctlError, match=r"low_power\.exit") as caught:
            ioas.map_file(dma_buf, dma_buf.size)
        assert caught.value.errno == errno.ENODEV
        device.low_power.exit()
        assert mapping.revoked
        assert not ioas.map_file(dma_buf, dma_buf.size).revoked


def test_what_outlasts_it(
    device: Device, ioas: IOAS, mapping: DMAMapping, buffer: DMABuffer, edu: EduDriver, arrives: Arrives
) -> None:
    device.attach(ioas)
    (vector,) = device.interrupts.msi.enable()
    device.low_power.enter()
    sleeps(device)
    device.low_power.exit()
    assert device.bus_master
    assert arrives(edu, buffer)
    edu.raise_interrupt()
    assert vector.wait(patience()) == 1
    edu.acknowledge_interrupt()


def test_closed_while_it_sleeps(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    window = device.region(0).map()
    device.low_power.enter()
    sleeps(device)
    device.close()
    assert window.closed
    with iommufd.bind(first) as again, again.region(0).map() as registers:
        assert not again.low_power.asleep
        assert registers.read32(0) == ID
