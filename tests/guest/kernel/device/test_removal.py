"""The host wants a device back: REQ is served, and whoever waits for the device gets it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pyiommufd import IOMMUFD, Claim, ClosedError, Device, DMABuffer, HostDevice, InUseError
from pyiommufd.host import drivers, worker
from pyiommufd.host.holders import holders
from tests.guest.dma import IOVA
from tests.patience import patience, until

LIMIT = 5.0
"""Seconds within which a device that is held goes."""

HOLDER = """
import signal, sys, time
from pyiommufd import IOMMUFD, DMABuffer

iommufd = IOMMUFD()
device = iommufd.bind(sys.argv[1])
ioas = iommufd.alloc_ioas()
device.attach(ioas)
buffer = DMABuffer(1 << 20)
ioas.map(buffer, iova=0x100000)
window = device.region(0).map()
(msi,) = device.interrupts.msi.enable()
if sys.argv[2] == "serves":
    device.watch_removal(lambda device: print("asked", flush=True))
print("holds", flush=True)
while not device.closed:
    time.sleep(0.05)
print("released", window.closed, msi.closed, flush=True)
iommufd.close()
buffer.close()
"""


@pytest.fixture
def rebound(claimed_alone: Claim, alone: HostDevice) -> Iterator[HostDevice]:
    """The edu device that is alone, back on its vfio driver after the test has taken it off."""
    yield alone.refreshed()
    if drivers.driver_of(alone) is None:
        drivers.bind(alone, "vfio-pci")


def hold(device: HostDevice, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, device.name, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


@pytest.mark.long
def test_unbind_of_a_device_that_a_program_holds_mapped(rebound: HostDevice) -> None:
    process = hold(rebound, "serves")
    start = time.monotonic()
    drivers.unbind(rebound, patience())
    took = time.monotonic() - start
    print(f"the unbind took {took:.2f} s")
    assert took < patience(LIMIT)
    output, _ = process.communicate(timeout=patience())
    assert drivers.driver_of(rebound) is None
    assert output == "asked\nreleased True True\n"
    assert process.returncode == 0


@pytest.mark.long
def test_program_that_ignores_req_is_named(rebound: HostDevice) -> None:
    process = hold(rebound, "ignores")
    try:
        with pytest.raises(TimeoutError):
            drivers.unbind(rebound, patience(1))  # not less: the process that is to write it has to come to that
        until(lambda: not (rebound.sys_path / "vfio-dev").exists(), "the kernel takes the vfio device away")
        # By the snapshot from before as by a fresh one, whose vfio folder has gone meanwhile.
        for device in (rebound, rebound.refreshed()):
            found = [(holder.pid, holder.how.partition(" ")[0]) for holder in holders(device)]
            assert (process.pid, "fd") in found
            assert (process.pid, "mapping") in found
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    until(lambda: drivers.driver_of(rebound) is None, "the driver lets go")
    for writer in worker._abandoned:
        writer.wait(patience())


def test_req_from_asyncio(rebound: HostDevice) -> None:
    """The event loop's own way: no thread, the device is closed by the task that was told."""
    command = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"]
    arguments = [str(rebound.sys_path / "driver/unbind"), rebound.name]

    async def main() -> int:
        with IOMMUFD() as iommufd:
            device = iommufd.bind(rebound)
            (req,) = device.interrupts.req.enable()
            unbind = await asyncio.create_subprocess_exec(*command, *arguments)
            count = await asyncio.wait_for(req, patience())
            device.close()
            assert await asyncio.wait_for(unbind.wait(), patience()) == 0
            return count

    assert asyncio.run(main()) >= 1
    assert drivers.driver_of(rebound) is None


def test_removal_watch_takes_req(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    with device.watch_removal(), pytest.raises(InUseError):
        device.interrupts.req.enable()
    assert not device.interrupts.req.enabled
    told: list[Device] = []
    device.watch_removal(told.append)
    device.watch_removal()
    with device.watch_removal(lambda device: told.clear()):
        pass
    device.watch_removal(lambda device: None if device.closed else told.append(device))
    window = device.region(0).map()
    # As the kernel does when the host wants the device back.
    device.interrupts.req.trigger()
    until(lambda: device not in iommufd.devices, "the device is let go")
    assert told == [device, device]
    assert device.closed
    assert window.closed
    with pytest.raises(TypeError):
        iommufd.bind(first).watch_removal("x")  # type: ignore[arg-type]


def test_watch_that_begins_while_others_are_told(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    """It is told as well, before the device is closed; afterwards there is nothing to watch."""
    device = iommufd.bind(first)
    told: list[str] = []

    def late(device: Device) -> None:
        told.append("late" if not device.closed else "too late")

    def early(device: Device) -> None:
        told.append("early")
        device.watch_removal(late)

    device.watch_removal(early)
    device.interrupts.req.trigger()
    until(lambda: device.closed, "the device is let go")
    assert told == ["early", "late"]


def test_req_of_ones_own_once_the_watch_has_ended(device: Device) -> None:
    device.watch_removal()
    device.interrupts.req.disable()
    (req,) = device.interrupts.req.enable()
    with pytest.raises(InUseError):
        device.watch_removal()
    req.trigger()
    assert req.wait(patience()) == 1
    assert not device.closed


def test_watch_that_begins_while_the_last_one_ends(device: Device) -> None:
    """Each needs the interrupts and the watches: were these under two locks, either would wait for the other."""
    last = device.watch_removal()
    ends = threading.Thread(target=last.close, daemon=True)

    def begin() -> None:
        with device.interrupts._lock:
            ends.start()
            until(lambda: _within(ends, "remove"), "the other thread ends the last watch")
            device.watch_removal()

    begins = threading.Thread(target=begin, daemon=True)
    begins.start()
    for thread in (begins, ends):
        thread.join(patience())
        assert not thread.is_alive()
    assert repr(last) == f"<RemovalWatch of {device.name}: ended>"
    assert device.interrupts.req.enabled


def _within(thread: threading.Thread, function: str) -> bool:
    """Whether a thread runs a function, or what that calls."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


def test_watch_ends_with_the_device(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    told: list[Device] = []
    watch = device.watch_removal(told.append)
    device.close()
    watch.close()
    assert told == []
    with pytest.raises(ClosedError):
        device.watch_removal()


def test_callback_may_close_the_device_itself(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    with DMABuffer(4096) as buffer, ioas.map(buffer, iova=IOVA):
        device.watch_removal(lambda device: device.close())
        device.interrupts.req.trigger()
        until(lambda: device not in iommufd.devices, "the device is let go")
        # What others have mapped is theirs, and stays.
        assert len(ioas._table) == 1
