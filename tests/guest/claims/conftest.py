"""A machine with more to claim: a physical function with two virtual ones, devices alone in their groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import HostDevice, list_devices, recover
from pyiommufd.host import drivers, sysfs
from pyiommufd.host.claims import journal, restore
from pyiommufd.host.claims.record import DeviceState
from pyiommufd.host.claims.release import release
from pyiommufd.host.discovery.vfs import vfs_of

State = dict[str, DeviceState]


@pytest.fixture(scope="session")
def pf() -> HostDevice:
    """A physical function on its host driver."""
    for device in list_devices("pci"):
        if vfs_of(device).total >= 2 and device.driver:
            return device
    pytest.skip("this machine has no device with virtual functions: tests/run tests/guest/claims makes one")


@pytest.fixture(scope="session")
def rng() -> HostDevice:
    """A device on a host driver, alone in its group."""
    for device in list_devices("pci"):
        group = device.group
        if device.driver == "virtio-pci" and group is not None and len(group.devices) == 1:
            return device
    pytest.skip("this machine has no virtio device alone in its group: tests/run tests/guest/claims makes one")


@pytest.fixture(scope="session")
def state() -> Callable[[], State]:
    """How every device of the machine is: driver, override, virtual functions and theirs."""

    def state() -> State:
        devices = {device.name: restore.device_state(device.sys_path) for device in list_devices("pci")}
        return {name: device for name, device in devices.items() if device is not None}

    return state


@pytest.fixture(autouse=True)
def as_before(state: Callable[[], State]) -> Iterator[State]:
    """Every test leaves the machine as it was, and no record."""
    before = state()
    yield before
    try:
        assert journal.records() == []
        assert state() == before
    finally:
        release()
        recover()


@pytest.fixture
def functions(pf: HostDevice) -> Iterator[tuple[HostDevice, ...]]:
    """Two virtual functions: one on pci-stub by its override, one without a driver."""
    # Unprobed, as the host's driver takes its time to find that QEMU's are switched off.
    sysfs.write(pf.sys_path / "sriov_drivers_autoprobe", "0")
    sysfs.write(pf.sys_path / "sriov_numvfs", "2")
    sysfs.write(pf.sys_path / "sriov_drivers_autoprobe", "1")
    found = vfs_of(pf).devices
    drivers.set_driver_override(found[0], "pci-stub")
    drivers.bind(found[0], "pci-stub")
    yield tuple(device.refreshed() for device in found)
    sysfs.write(pf.sys_path / "sriov_numvfs", "0")


@pytest.fixture
def sriov_by_vfio() -> Iterator[None]:
    """vfio-pci makes virtual functions, as where it is loaded with enable_sriov=1."""
    parameter = sysfs.SYS / "module/vfio_pci/parameters/enable_sriov"
    before = sysfs.read(parameter) or ""
    sysfs.write(parameter, "1")
    yield
    sysfs.write(parameter, before)


@pytest.fixture
def markers(tmp_path: Path) -> Path:
    """A folder for files that stand for what a process has."""
    folder = tmp_path / "markers"
    folder.mkdir()
    return folder
