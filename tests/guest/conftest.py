"""What the guest tests share: the machine's devices, claims of them, and the proof that DMA moved or did not.

These tests claim devices and change drivers: they are for a guest. The machine needs two edu devices that share an
IOMMU group with a device on a host driver, and one edu device alone in its group; `pyiommufd guest` makes it so.
"""

from __future__ import annotations

import itertools
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    Group,
    HostDevice,
    find_group,
    list_groups,
    plan_claim,
    recover,
)
from pyiommufd.host import drivers
from pyiommufd.testing.drivers import edu as edu_module
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, PIECE, Arrives
from tests.guest.types import DriverState, ReadDriverState


def _is_edu(device: HostDevice) -> bool:
    return (device.vendor_id, device.device_id) == (edu_module.VENDOR_ID, edu_module.DEVICE_ID)


@dataclass(frozen=True)
class DefaultMachine:
    """The devices as they were before the first test.

    Attributes:
        shared: The group of several devices.
        edus: The edu devices in it.
        alone: The edu device that is alone in its group.
    """

    shared: Group
    edus: tuple[HostDevice, ...]
    alone: HostDevice


@pytest.fixture(scope="session")
def default_machine() -> DefaultMachine:
    """The devices of the default guest; on a machine that lacks them, the end of the run."""
    recover()
    groups = [(group, tuple(filter(_is_edu, group.devices))) for group in list_groups()]
    shared = [(group, edus) for group, edus in groups if len(edus) > 1 and group.blockers]
    lone = [edus[0] for group, edus in groups if len(edus) == len(group.devices) == 1]
    if not Path("/dev/iommu").exists() or not shared or not lone:
        pytest.exit("this machine lacks what the tests need; run: pyiommufd guest -- python -m pytest tests/guest", 3)
    return DefaultMachine(*shared[0], lone[0])


@pytest.fixture(scope="session", autouse=True)
def right_machine(default_machine: DefaultMachine) -> None:
    """The tests are on the machine that they are for. Tests for another one override this."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What claims and gives back itself comes first: the claims that the rest shares then last to the end."""
    items.sort(key=lambda item: not {"claimed", "claimed_alone"}.isdisjoint(getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session")
def first(default_machine: DefaultMachine) -> HostDevice:
    """An edu device of the shared group, as it was at the start: without a driver."""
    return default_machine.edus[0]


@pytest.fixture(scope="session")
def peer(default_machine: DefaultMachine) -> HostDevice:
    """The other edu device of the shared group."""
    return default_machine.edus[1]


@pytest.fixture(scope="session")
def neighbour(default_machine: DefaultMachine) -> HostDevice:
    """The member of the shared group that is on a host driver."""
    return next(device for device in default_machine.shared.devices if device in default_machine.shared.blockers)


@pytest.fixture(scope="session")
def bridge(default_machine: DefaultMachine) -> HostDevice:
    """The bridge that makes the shared group one."""
    return next(device for device in default_machine.shared.devices if device.is_bridge)


@pytest.fixture(scope="session")
def alone(default_machine: DefaultMachine) -> HostDevice:
    """The edu device that is alone in its group."""
    return default_machine.alone


@pytest.fixture(scope="session")
def claimed(first: HostDevice) -> Iterator[Claim]:
    """The shared group on its vfio driver, from the first test that asks for it to the end of the run."""
    with plan_claim(first).apply() as claim:
        yield claim


@pytest.fixture(scope="session")
def claimed_alone(alone: HostDevice) -> Iterator[Claim]:
    """The edu device that is alone on its vfio driver, likewise."""
    with plan_claim(alone).apply() as claim:
        yield claim


@pytest.fixture
def iommufd() -> Iterator[IOMMUFD]:
    with IOMMUFD() as iommufd:
        yield iommufd


@pytest.fixture
def device(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> Device:
    """The first edu device, bound, and able to do DMA as far as it is up to the device."""
    device = iommufd.bind(first)
    device.bus_master = True
    return device


@pytest.fixture
def peer_device(claimed: Claim, iommufd: IOMMUFD, device: Device, peer: HostDevice) -> Device:
    """The second edu device, bound after the first."""
    device = iommufd.bind(peer)
    device.bus_master = True
    return device


@pytest.fixture
def lone_device(claimed_alone: Claim, iommufd: IOMMUFD, alone: HostDevice) -> Device:
    """The edu device that is alone, bound."""
    device = iommufd.bind(alone)
    device.bus_master = True
    return device


@pytest.fixture
def edu(device: Device) -> Iterator[EduDriver]:
    with EduDriver(device) as driver:
        yield driver


@pytest.fixture
def peer_edu(peer_device: Device) -> Iterator[EduDriver]:
    with EduDriver(peer_device) as driver:
        yield driver


@pytest.fixture
def ioas(iommufd: IOMMUFD) -> IOAS:
    return iommufd.alloc_ioas()


@pytest.fixture
def buffer() -> DMABuffer:
    """Four pages; not closed here, as a test may leave it mapped."""
    return DMABuffer(4 * 4096)


@pytest.fixture
def mapping(ioas: IOAS, buffer: DMABuffer) -> DMAMapping:
    """The buffer, mapped at `IOVA`, where an edu device can reach it."""
    return ioas.map(buffer, iova=IOVA)


_fresh = itertools.count(1)


@pytest.fixture(scope="session")
def arrives() -> Arrives:
    """Whether a device's DMA to `IOVA` changes a buffer.

    Each call fills the memory anew, with a byte that no device has been given to copy: what is there afterwards and
    was not before has come by DMA. Bus mastering has to be on, or that nothing arrives would say nothing.
    """

    def arrives(driver: EduDriver, buffer: DMABuffer) -> bool:
        assert driver.device.bus_master, "nothing could arrive, whatever the IOMMU does"
        before = bytes([1 + next(_fresh) % 120]) * PIECE
        buffer[:PIECE] = before
        driver.copy_out(IOVA, PIECE)
        return buffer[:PIECE] != before

    return arrives


@pytest.fixture
def driver_state(first: HostDevice, alone: HostDevice) -> ReadDriverState:
    """Driver and override of every member of the shared group and of that of the device alone, as they are now."""

    def driver_state() -> DriverState:
        members = [device for at in (first, alone) for device in find_group(at.group_id or 0).devices]
        return {device.name: (device.driver, drivers.driver_override(device)) for device in members}

    return driver_state


@pytest.fixture(scope="session")
def in_child() -> Callable[[Callable[[], Any]], Any]:
    """Run a function in a forked child and return what it returns there."""

    def run(function: Callable[[], Any]) -> Any:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                result = pickle.dumps((True, function()))
            except BaseException:
                result = pickle.dumps((False, traceback.format_exc()))
            os.write(writer, result)
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        good, result = pickle.loads(data)  # noqa: S301
        assert good, result
        return result

    return run


@pytest.fixture(scope="session")
def kernel_fds() -> Callable[[], dict[int, str]]:
    """This process's fds of the kernel's objects: iommufds, vfio devices, dma-bufs, memfds."""

    def kernel_fds() -> dict[int, str]:
        found = {}
        for fd in Path("/proc/self/fd").iterdir():
            try:
                target = str(fd.readlink())
            except OSError:
                continue  # the fd of the listing itself
            if target == "/dev/iommu" or target.startswith(("/dev/vfio", "/dmabuf:", "/memfd:pyiommufd")):
                found[int(fd.name)] = target
        return found

    return kernel_fds


@pytest.fixture(autouse=True)
def leaves_nothing_open(kernel_fds: Callable[[], dict[int, str]]) -> Iterator[None]:
    """Every test closes what it has opened, or has it closed."""
    before = kernel_fds()
    yield
    after = kernel_fds()
    assert {fd: what for fd, what in after.items() if not what.startswith("/memfd")} == {
        fd: what for fd, what in before.items() if not what.startswith("/memfd")
    }


@pytest.fixture(scope="session")
def huge_pages() -> Iterator[None]:
    """A few huge pages of 2 MiB, given back at the end."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = pool.read_text()
    pool.write_text("8")
    if int(pool.read_text()) < 4:
        pytest.skip("this machine has no 8 MiB of contiguous memory left for huge pages")
    yield
    pool.write_text(before)
