"""The repr of what is made of a device: a line that names it."""

from __future__ import annotations

import contextlib

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    Device,
    DeviceFile,
    DMABuffer,
    EventFD,
    HostDevice,
    Monitor,
    UnsupportedError,
)
from tests.escapes import invisible
from tests.guest.dma import IOVA


def check(made: object, *names: object) -> None:
    text = repr(made)
    assert text.startswith(f"<{type(made).__name__} ")
    assert text.endswith(">")
    assert len(text) < 160
    assert not invisible(text)
    for name in names:
        assert str(name) in text, text


def test_objects_of_an_iommufd(iommufd: IOMMUFD, ioas: IOAS, device: Device) -> None:
    check(iommufd, f"fd {iommufd.fileno()}")
    check(ioas, ioas.id)
    device.attach(ioas)
    check(device.alloc_hwpt(ioas), "HWPT")
    with DMABuffer(1 << 20) as buffer:
        with ioas.map(buffer, iova=IOVA) as mapping:
            check(mapping, "0x100000..0x1fffff")
            check(ioas.iova_ranges()[0], "0x0")
        check(mapping, "unmapped")
        with ioas.map_many(buffer, [(0, 4096, IOVA), (8192, 4096, None)]) as mappings:
            check(mappings, "2 pieces")
        with ioas.map_many(buffer, [(0, 4096, IOVA)]) as mappings:
            check(mappings, "1 piece,")
    with contextlib.suppress(UnsupportedError):  # before Linux 6.11
        check(iommufd.alloc_fault_queue(), "FaultQueue")
    check(device.hw_info())
    check(device.hw_info().decoded)


def test_device_and_what_it_has(device: Device) -> None:
    check(device, device.name, device.id)
    check(device.info(), "PCI")
    check(device.region(0), device.name)
    for part in (*device.region(0).mappable, *device.region(0).capabilities):
        check(part)
    with device.region(0).map() as window:
        check(window)
    check(device.config, device.name)
    for capability in device.config.capabilities():
        check(capability, hex(capability.offset))
    check(device.interrupts, device.name)
    check(device.interrupts.msi, device.name, "MSI")
    (vector,) = device.interrupts.msi.enable()
    check(vector, device.name)
    device.close()
    check(device, "closed")


def test_what_a_hot_reset_takes_along(claimed: Claim, device: Device) -> None:
    info = device.hot_reset_info()
    check(info, device.name)
    for dependent in info.devices:
        check(dependent, dependent.name)


def test_what_is_open(claimed: Claim, first: HostDevice) -> None:
    with DeviceFile(first) as file:
        check(file, first.name)
    with Monitor(["pci"]) as monitor:
        check(monitor, "pci")
    check(monitor, "closed")
    with EventFD() as event:
        assert repr(event).startswith("<EventFD")
