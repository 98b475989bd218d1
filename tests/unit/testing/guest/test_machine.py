"""QEMU arguments of IOMMUs and devices."""

from __future__ import annotations

import pytest

from pyiommufd.testing import (
    E1000e,
    Edu,
    Igb,
    Ivshmem,
    Nvme,
    RawDevice,
    RootPort,
    SharedGroup,
    VirtioDisk,
    VirtioRng,
    Xhci,
)
from pyiommufd.testing.guest.machine import (
    DEFAULT_DEVICES,
    IOMMU_KINDS,
    default_devices,
    device_arguments,
    escape,
    iommu_arguments,
    iommu_device,
)


def test_default_topology() -> None:
    assert device_arguments(DEFAULT_DEVICES) == [
        "-device", "edu",
        "-device", "pcie-root-port,id=rp1,chassis=1",
        "-device", "pcie-pci-bridge,id=br1,bus=rp1",
        "-device", "edu,bus=br1,addr=0x1",
        "-device", "edu,bus=br1,addr=0x2",
        "-device", "virtio-rng-pci,iommu_platform=on,disable-legacy=on,bus=br1,addr=0x3",
    ]  # fmt: skip


def test_names_and_chassis_are_unique() -> None:
    arguments = device_arguments([SharedGroup(Edu()), RootPort(Edu(id="a")), SharedGroup(Nvme(size=4096))])
    assert arguments == [
        "-device", "pcie-root-port,id=rp1,chassis=1",
        "-device", "pcie-pci-bridge,id=br1,bus=rp1",
        "-device", "edu,bus=br1,addr=0x1",
        "-device", "pcie-root-port,id=rp2,chassis=2",
        "-device", "edu,id=a,bus=rp2",
        "-device", "pcie-root-port,id=rp3,chassis=3",
        "-device", "pcie-pci-bridge,id=br3,bus=rp3",
        "-blockdev", "driver=null-co,node-name=disk4,size=4096,read-zeroes=on",
        "-device", "nvme,serial=pyiommufd,drive=disk4,bus=br3,addr=0x1",
    ]  # fmt: skip


def test_properties() -> None:
    assert device_arguments([Edu(dma_mask=0xFFFFFFFF)]) == ["-device", "edu,dma_mask=0xffffffff"]
    assert device_arguments([RawDevice("edu,addr=7")]) == ["-device", "edu,addr=7"]
    assert device_arguments([RootPort(E1000e(id="n")), Ivshmem(size=4096), Xhci(msix=False)]) == [
        "-device", "pcie-root-port,id=rp1,chassis=1",
        "-device", "e1000e,id=n,bus=rp1",
        "-object", "memory-backend-ram,id=memory2,share=on,size=4096",
        "-device", "ivshmem-plain,memdev=memory2",
        "-device", "nec-usb-xhci,msi=on,msix=off",
    ]  # fmt: skip
    assert device_arguments([Igb()]) == ["-device", "igb"]
    assert device_arguments([Nvme(serial="a,b")]) == ["-device", "nvme,serial=a,,b"]
    assert device_arguments([Nvme(image="/a,b"), VirtioDisk(image="/c"), E1000e(network=True)]) == [
        "-blockdev", "driver=file,node-name=disk1,filename=/a,,b",
        "-device", "nvme,serial=pyiommufd,drive=disk1",
        "-blockdev", "driver=file,node-name=disk2,filename=/c",
        "-device", "virtio-blk-pci,drive=disk2,serial=pyiommufd,iommu_platform=on,disable-legacy=on",
        "-netdev", "user,id=network3,restrict=on,ipv6=off",
        "-device", "e1000e,netdev=network3",
    ]  # fmt: skip
    assert escape("a,b,,c") == "a,,b,,,,c"


def test_devices_are_values() -> None:
    assert SharedGroup(Edu(), VirtioRng()) == SharedGroup(Edu(), VirtioRng())
    assert len({Edu(), Edu(), Edu(dma_mask=1)}) == 2
    with pytest.raises(AttributeError):
        Edu().id = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"scalable-mode", "fsts"}, "scalable-mode=on,fsts=on"),
        ({"x-scalable-mode", "x-flts"}, "x-scalable-mode=on,x-flts=on"),
        ({"x-scalable-mode", "fsts"}, "x-scalable-mode=on,fsts=on"),
    ],
)
def test_first_stage_under_either_name(properties: set[str], expected: str) -> None:
    (_, argument) = iommu_arguments("intel-first-stage", properties)
    assert argument.endswith(expected)


def test_what_a_qemu_lacks_is_named() -> None:
    with pytest.raises(LookupError, match="first-stage"):
        iommu_arguments("intel-first-stage", {"x-scalable-mode"})
    with pytest.raises(LookupError, match="DMA remapping"):
        iommu_arguments("amd", {"intremap"})
    assert iommu_arguments("amd", {"dma-remap"}) == ["-device", "amd-iommu,dma-remap=on,intremap=on,xtsup=on"]


def test_every_kind_is_known() -> None:
    for kind in IOMMU_KINDS:
        arguments = iommu_arguments(kind, {"dma-remap", "fsts", "scalable-mode"})
        assert (arguments == []) == (kind == "none")
        assert default_devices(kind)
        assert iommu_device(kind) in (None, "intel-iommu", "amd-iommu")
    with pytest.raises(ValueError, match="choose one of intel"):
        iommu_arguments("smmu", ())
