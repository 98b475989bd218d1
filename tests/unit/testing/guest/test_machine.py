"""QEMU arguments of IOMMUs and devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.testing import (
    E1000e,
    Edu,
    Igb,
    Ivshmem,
    MultiFunction,
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
    architecture_of,
    default_devices,
    default_iommu,
    device_arguments,
    escape,
    iommu_arguments,
    iommu_device,
    machine_arguments,
)
from pyiommufd.testing.plugin import IOMMUS
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, own_architecture


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


def test_functions_of_one_slot() -> None:
    assert device_arguments([Edu(), MultiFunction(Edu(), RawDevice("edu"), VirtioRng())]) == [
        "-device", "edu",
        "-device", "pcie-root-port,id=rp1,chassis=1",
        "-device", "edu,bus=rp1,addr=0x0.0,multifunction=on",
        "-device", "edu,bus=rp1,addr=0x0.1",
        "-device", "virtio-rng-pci,iommu_platform=on,disable-legacy=on,bus=rp1,addr=0x0.2",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a slot has 8 functions, not 9"):
        MultiFunction(*[Edu()] * 9)
    with pytest.raises(TypeError, match="Edu is a class"):
        MultiFunction(Edu)  # type: ignore[arg-type]


def test_the_machine_of_each_architecture() -> None:
    assert [architecture_of(kind) for kind in ("none", "virtio", "smmuv3-nested")] == [X86_64, X86_64, AARCH64]
    assert architecture_of(default_iommu()) == own_architecture()
    assert machine_arguments(X86_64, "kvm") == ["-machine", "q35,kernel-irqchip=split,sata=off", "-cpu", "max"]
    board = ["-machine", "virt,gic-version=3,iommu=smmuv3,acpi=on", "-cpu"]
    assert machine_arguments(AARCH64, "kvm") == [*board, "max"]
    emulated = machine_arguments(AARCH64, "tcg,thread=multi", Path("/firmware"))
    assert emulated == [*board, "cortex-a72", "-bios", "/firmware"]


def test_every_kind_is_known() -> None:
    assert IOMMUS == IOMMU_KINDS
    for kind in IOMMU_KINDS:
        arguments = iommu_arguments(kind, {"dma-remap", "fsts", "scalable-mode"})
        # Arm's is of the board.
        assert (arguments == []) == (kind in ("none", "smmuv3", "smmuv3-nested"))
        assert default_devices(kind)
        assert iommu_device(kind) in (None, "intel-iommu", "amd-iommu")
    with pytest.raises(ValueError, match="choose one of intel"):
        iommu_arguments("smmu", ())
