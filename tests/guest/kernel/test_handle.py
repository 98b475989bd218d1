"""Owners in a forked child: the child closes its copies of the fds, and nothing of the parent's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import IOAS, IOMMUFD, Claim, Device, DeviceFile, DMABuffer, DMAMapping, ForkedError, HostDevice
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import Arrives

InChild = Callable[[Callable[[], Any]], Any]


def test_every_use_in_a_child_is_refused(
    device: Device, iommufd: IOMMUFD, ioas: IOAS, mapping: DMAMapping, first: HostDevice, in_child: InChild
) -> None:
    device.attach(ioas)
    region = device.region(0)
    uses: dict[str, Callable[[], object]] = {
        "iommufd.fileno": iommufd.fileno,
        "iommufd.alloc_ioas": iommufd.alloc_ioas,
        "iommufd.bind": lambda: iommufd.bind(first),
        "ioas.map": lambda: ioas.map(DMABuffer(4096)),
        "ioas.unmap": lambda: ioas.unmap(mapping.iova, mapping.length),
        "ioas.unmap_all": ioas.unmap_all,
        "ioas.iova_ranges": ioas.iova_ranges,
        "mapping.unmap": mapping.unmap,
        "device.attach": lambda: device.attach(ioas),
        "device.replace": lambda: device.replace(ioas),
        "device.detach": device.detach,
        "device.preview_attach": lambda: device.preview_attach(ioas),
        "device.region": lambda: device.region(0),
        "device.config": lambda: device.config,
        "device.bus_master": lambda: device.bus_master,
        "region.read": lambda: region.read(0, 4),
        "region.write": lambda: region.write(4, bytes(4)),
        "region.map": region.map,
    }

    def child() -> list[str]:
        allowed = []
        for name, use in uses.items():
            try:
                use()
            except ForkedError:
                continue
            allowed.append(name)
        return allowed

    assert in_child(child) == []
    assert mapping.mapped
    assert ioas.unmap_all() == mapping.length


def test_closing_in_a_child_leaves_the_parents(
    device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    first: HostDevice,
    in_child: InChild,
    arrives: Arrives,
) -> None:
    device.attach(ioas)
    numbers = device.fileno(), iommufd.fileno()

    def child() -> list[int]:
        edu.close()
        ioas.close()
        device.close()
        iommufd.close()
        iommufd.close()
        return [fd for fd in numbers if Path(f"/proc/self/fd/{fd}").exists()]

    assert in_child(child) == []
    assert arrives(edu, buffer)


def test_child_that_ends_does_not_keep_the_device(claimed: Claim, first: HostDevice, in_child: InChild) -> None:
    with IOMMUFD() as iommufd:
        device = iommufd.bind(first)
        window = device.region(0).map()
        in_child(lambda: None)
        assert window.read32(0)
        device.close()
        assert iommufd.bind(first).bind_change.devices


def test_device_file_in_a_child(claimed: Claim, first: HostDevice, in_child: InChild) -> None:
    with DeviceFile(first) as file:
        number = file.fileno()

        def child() -> tuple[str, bool]:
            try:
                file.fileno()
            except ForkedError as error:
                refused = str(error)
            file.close()
            return refused, Path(f"/proc/self/fd/{number}").exists()

        refused, still_there = in_child(child)
        assert str(os.getpid()) in refused
        assert not still_there
        assert file.fileno() == number
        os.fstat(number)


def test_two_processes_cannot_both_have_the_device(device: Device, first: HostDevice, in_child: InChild) -> None:
    def child() -> int | None:
        with IOMMUFD() as own, pytest.raises(OSError, match="EINVAL") as caught:
            own.bind(first)
        return caught.value.errno

    assert in_child(child) == 22
