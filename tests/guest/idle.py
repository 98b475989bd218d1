"""Every device of a machine that nothing uses: claimed, moving data where it can, and at work again afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from pyiommufd import IOAS, IOMMUFD, Device, DMABuffer, HostDevice, list_devices, plan_claim
from pyiommufd.host.overview.standing import Standing, standings
from pyiommufd.testing.drivers import edu
from pyiommufd.testing.drivers.e1000e import E1000eDriver
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.drivers.nvme import NvmeDriver
from pyiommufd.testing.drivers.virtio_blk import VirtioBlkDriver
from tests.guest.dma import IOVA
from tests.patience import until


def _edu(device: Device, ioas: IOAS) -> None:
    with DMABuffer(4096) as buffer, ioas.map(buffer, iova=IOVA), EduDriver(device) as driver:
        buffer[:8] = b"by DMA !"
        driver.copy_in(IOVA, 8)
        buffer[:8] = bytes(8)
        driver.copy_out(IOVA, 8)
        assert buffer[:8] == b"by DMA !"


def _e1000e(device: Device, ioas: IOAS) -> None:
    with DMABuffer(8192) as buffer, ioas.map(buffer) as mapping, E1000eDriver(device, ioas) as driver:
        buffer[:512] = b"s" * 512
        driver.copy(mapping.iova, mapping.iova + 4096, 512)
        assert buffer[4096 : 4096 + 512] == b"s" * 512


def _nvme(device: Device, ioas: IOAS) -> None:
    with NvmeDriver(device, ioas) as driver:
        assert driver.identify().serial


def _virtio_disk(device: Device, ioas: IOAS) -> None:
    with VirtioBlkDriver(device, ioas) as driver:
        assert len(driver.read(0, 512)) == 512


_DMA: dict[tuple[int | None, int | None], Callable[[Device, IOAS], None]] = {
    (edu.VENDOR_ID, edu.DEVICE_ID): _edu,
    (0x8086, 0x10D3): _e1000e,
    (0x1B36, 0x0010): _nvme,
    (0x1AF4, 0x1042): _virtio_disk,
}


def take_each_idle_device() -> tuple[list[str], list[str]]:
    """Claim every device that nothing uses, with its group; bind, attach, and move data; give all back.

    Returns:
        The names of the devices that were claimed, and of those that moved data.
    """
    claimed: list[str] = []
    moved: list[str] = []
    found = standings(list_devices("pci"))
    groups: dict[int, list[HostDevice]] = {}
    for device, standing in found.items():
        if standing is Standing.CLAIMABLE and device.group_id is not None:
            groups.setdefault(device.group_id, []).append(device)
    for devices in groups.values():
        before = {device: _at_work(device) for device in devices}
        with plan_claim(devices).apply(), IOMMUFD() as iommufd:
            ioas = iommufd.alloc_ioas()
            for host in devices:
                bound = iommufd.bind(host)
                bound.attach(ioas)
                if host.class_code is not None and host.class_code >> 16 != 0x06:
                    bound.bus_master = True
                claimed.append(host.name)
                if move := _DMA.get((host.vendor_id, host.device_id)):
                    move(bound, ioas)
                    moved.append(host.name)
        for device, work in before.items():
            assert until(functools.partial(_works, device, work)), device
    return claimed, moved


def _works(device: HostDevice, before: object) -> bool:
    return _at_work(device) == before


def _at_work(device: HostDevice) -> tuple[str | None, list[str], list[bytes]]:
    """The device's driver, its interfaces, and the beginning of each disk."""
    device = device.refreshed()
    interfaces = sorted(path.name for path in device.sys_path.glob("**/net/*") if path.is_dir())
    nodes = [Path("/dev", path.parent.name) for path in device.sys_path.glob("**/queue") if path.parent.name]
    disks = [_beginning(node) for node in sorted(nodes)]
    return device.driver, interfaces, disks


def _beginning(node: Path) -> bytes:
    if not node.is_block_device():
        return b"no node yet"
    with node.open("rb") as file:
        return file.read(4096)
