"""A bound device: its life, and use after its end."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    Claim,
    ClosedError,
    Command,
    Device,
    DMABuffer,
    DMAMapping,
    HostDevice,
    IoctlError,
    Window,
    find_device,
)
from pyiommufd.host import drivers, sysfs
from pyiommufd.kernel.interrupts.interrupts import Interrupts
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives
from tests.guest.kernel.members import on_driver
from tests.opcodes import opcodes


def test_close_unbinds(claimed: Claim, iommufd: IOMMUFD, first: HostDevice, ioas: IOAS) -> None:
    device = iommufd.bind(first)
    device.attach(ioas)
    with pytest.raises(IoctlError) as refusal:
        iommufd.bind(first)
    assert refusal.value.errno == errno.EINVAL  # it is open, and bound, through another fd
    device.close()
    assert device.closed
    assert len(iommufd.devices) == 0
    # Detached as well, in the kernel's eyes: the address space is free to go, and the device to be bound anew.
    ioas.close()
    again = iommufd.bind(first)
    assert again.bind_change.devices
    device.close()
    assert list(iommufd.devices) == [again]


def test_close_of_one_leaves_the_peer_bound(device: Device, peer_device: Device, iommufd: IOMMUFD) -> None:
    device.close()
    assert peer_device.bus_master
    again = iommufd.bind(device.host)
    # The group was not given up in between.
    assert again.bind_change.devices == ()


def test_a_later_bind_changes_nothing_and_the_device_shares_the_table_of_its_peers(
    device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    peer: HostDevice,
) -> None:
    device.attach(ioas)
    bound = iommufd.bind(peer)
    assert (bound.bind_change.kind, bound.bind_change.devices) == (ChangeKind.NOOP, ())
    assert arrives(edu, buffer)
    bound.bus_master = True
    with EduDriver(bound) as other:
        assert bound.page_table is None
        assert arrives(other, buffer)


def test_the_third_bind_of_a_blocked_group_leaves_it_blocked(
    device: Device,
    peer_device: Device,
    third_device: Device,
    edu: EduDriver,
    peer_edu: EduDriver,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
) -> None:
    kinds = [one.bind_change.kind for one in (device, peer_device, third_device)]
    assert kinds == [ChangeKind.FIRST, ChangeKind.NOOP, ChangeKind.NOOP]
    assert [one.bind_change.devices for one in (peer_device, third_device)] == [(), ()]
    assert not arrives(edu, buffer)
    assert not arrives(peer_edu, buffer)


def test_host_drivers_fail_to_probe_until_the_last_bound_device_closes(
    device: Device, peer_device: Device, neighbour: HostDevice
) -> None:
    bus = sysfs.SYS / "bus/pci"

    def refused(path: Path) -> int:
        with pytest.raises(OSError, match=str(path)) as caught:
            sysfs.write(path, neighbour.name)
        return caught.value.errno or 0

    with on_driver(neighbour, None):
        drivers.set_driver_override(neighbour, None)
        for bound in (device, peer_device):
            assert refused(bus / "drivers/virtio-pci/bind") == errno.EBUSY
            assert refused(bus / "drivers_probe") == errno.EINVAL
            bound.close()
        sysfs.write(bus / "drivers_probe", neighbour.name)
        assert drivers.driver_of(neighbour) == "virtio-pci"


def test_with_block_closes(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    with iommufd.bind(first) as device:
        assert device in iommufd.objects
    assert device.closed
    assert iommufd.objects == ()


@pytest.mark.parametrize("value", ["yes", "", 1, 0, None, [], np.bool_(True)])
def test_switches_are_true_or_false(iommufd: IOMMUFD, device: Device, ioas: IOAS, value: Any) -> None:
    hwpt = device.alloc_hwpt(ioas)
    switches = [(device, "bus_master"), (device, "memory_decode"), (ioas, "huge_pages"), (iommufd, "rlimit_mode")]
    for owner, name in switches:
        before = getattr(owner, name)
        with pytest.raises(TypeError, match=f"{name} is True or False, not "):
            setattr(owner, name, value)
        assert getattr(owner, name) is before
    with pytest.raises(TypeError, match="on is True or False"):
        hwpt.set_dirty_tracking(value)
    with pytest.raises(TypeError, match="on is True or False"):
        device.config.set_command(Command.MASTER, value)


def test_close_takes_the_windows_along(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    window = device.region(0).map()
    device.close()
    assert window.closed
    # A mapping that were left would keep the device bound.
    assert iommufd.bind(first).id == device.id


def test_window_that_is_mapped_while_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, claimed: Claim, iommufd: IOMMUFD, first: HostDevice
) -> None:
    """By a signal handler, when the windows have been closed: it would keep the device bound."""
    device = iommufd.bind(first)
    windows: list[Window] = []
    close = Interrupts._close

    def close_and_map(interrupts: Interrupts) -> None:
        close(interrupts)
        monkeypatch.undo()
        windows.append(device.region(0).map())

    monkeypatch.setattr(Interrupts, "_close", close_and_map)
    device.close()
    assert [window.closed for window in windows] == [True]
    assert iommufd.bind(first).id == device.id


def test_command_register_that_a_signal_handler_changes_meanwhile(device: Device) -> None:
    """A bit that it has cleared is not set again: it may be what lets the device do DMA."""
    files = ("pyiommufd/kernel/", "pyiommufd/uapi/")

    def act() -> None:
        device.memory_decode = True

    def handler() -> None:
        device.bus_master = False
        ran.append(True)

    every, _ = opcodes(act, files)
    assert every > 20
    for stop in range(every):
        device.memory_decode, device.bus_master = False, True
        ran: list[bool] = []
        opcodes(act, files, stop, handler, raises=False)
        assert (device.memory_decode, device.bus_master) == (True, not ran)


def test_dropped_device_warns_and_lets_everything_go(claimed: Claim, first: HostDevice) -> None:
    with IOMMUFD() as iommufd:
        device = iommufd.bind(first)
        assert iommufd.devices == (device,)
        # The iommufd owns it: dropping the name is no end of it.
        del device
        gc.collect()
        assert len(iommufd.devices) == 1


def test_use_after_close(device: Device, ioas: IOAS) -> None:
    region, config = device.region(0), device.config
    window = region.map()
    device.close()

    def set_bus_master() -> None:
        device.bus_master = True

    uses: tuple[Callable[[], object], ...] = (
        device.fileno,
        lambda: device.attach(ioas),
        lambda: device.replace(ioas),
        device.detach,
        lambda: device.preview_attach(ioas),
        lambda: device.region(0),
        lambda: device.config,
        lambda: device.bus_master,
        set_bus_master,
        lambda: region.read(0, 4),
        lambda: region.write(0, b"1234"),
        region.map,
        lambda: config.read(0, 4),
        lambda: window.read32(0),
        lambda: window.write32(4, 0),
    )
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    assert device.name
    assert device.page_table is None
    assert repr(device).endswith("closed>")


def test_attach_to_a_closed_address_space(device: Device, ioas: IOAS) -> None:
    ioas.close()
    for action in (device.attach, device.replace, device.preview_attach):
        with pytest.raises(ClosedError, match="IOAS"):
            action(ioas)


def test_bound_device_gives_no_memory_after_the_group_is_given_up(
    claimed: Claim,
    first: HostDevice,
    buffer: DMABuffer,
    arrives: Arrives,
) -> None:
    """A new bind starts from blocked, whatever the last one had mapped."""
    with IOMMUFD() as iommufd:
        device = iommufd.bind(first)
        device.bus_master = True
        ioas = iommufd.alloc_ioas()
        device.attach(ioas)
        ioas.map(buffer, iova=IOVA)
        with EduDriver(device) as edu:
            assert arrives(edu, buffer)
    with IOMMUFD() as iommufd:
        device = iommufd.bind(first)
        device.bus_master = True
        with EduDriver(device) as edu:
            assert not arrives(edu, buffer)


def test_snapshot_of_when_it_was_bound(device: Device, ioas: IOAS, mapping: DMAMapping) -> None:
    assert device.host == find_device(device.name)
    assert device.host.on_vfio
