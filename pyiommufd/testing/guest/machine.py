"""The guest's hardware: its IOMMU and its devices, and the QEMU arguments that make them.

A device is a small frozen description; `device_arguments` gives each its place. The machine is a q35 for the IOMMUs of
x86-64, a ``virt`` for Arm's.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture

IOMMU_KINDS = ("intel", "intel-first-stage", "amd", "virtio", "none", "smmuv3", "smmuv3-nested")
"""The virtual IOMMUs that a guest can have, or none. With Arm's SMMUv3 it is an aarch64 machine, else an x86-64 one.

``smmuv3-nested`` is that machine with one bit of its ACPI tables set, on which Linux's driver offers virtual IOMMUs and
nested translation: see ``guest/iort.py``.
"""


def escape(value: str) -> str:
    """Double the commas of a value, as QEMU's option syntax wants it."""
    return value.replace(",", ",,")


@dataclass(slots=True)
class Topology:
    """What has been placed so far: numbers of ports and bridges, which must be unique in a machine."""

    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_number(self) -> int:
        """A number that no port, bridge or drive of this machine has yet."""
        return next(self._numbers)


class GuestDevice(Protocol):
    """Something that can be put on a PCI bus of the guest."""

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """The QEMU arguments that add it.

        Args:
            topology: Gives unique numbers within one machine.
            place: ``,bus=…,addr=…`` of QEMU's option syntax, or empty for the next free slot of the root bus.
        """


def check_device(value: object) -> None:
    """Require something that can be put on a PCI bus.

    Raises:
        TypeError: It is something else, such as the class of a device.
    """
    if isinstance(value, type):
        raise TypeError(f"{value.__name__} is a class: a device is {value.__name__}(…)")
    if not callable(getattr(value, "arguments", None)):
        raise TypeError(f"{value!r:.60} is not a device, such as Edu() or RawDevice('edu')")


def _drive(topology: Topology, image: str | None, size: int | None) -> tuple[list[str], str | None]:
    """The arguments of a disk's content, and the name to refer to it by; nothing where neither is given."""
    if image is None and size is None:
        return [], None
    name = f"disk{topology.next_number()}"
    if image is None:
        return ["-blockdev", f"driver=null-co,node-name={name},size={size},read-zeroes=on"], name
    return ["-blockdev", f"driver=file,node-name={name},filename={escape(image)}"], name


def _device(driver: str, properties: dict[str, str | int | None], place: str) -> list[str]:
    given = "".join(f",{key}={escape(str(value))}" for key, value in properties.items() if value is not None)
    return ["-device", f"{driver}{given}{place}"]


@dataclass(frozen=True, slots=True)
class Edu:
    """QEMU's educational device (1234:11e8): a DMA engine, a 4 KiB buffer and an interrupt.

    Attributes:
        dma_mask: The addresses that its DMA reaches, as a mask; QEMU's default is 28 bits.
        id: QEMU's name of the device, for hot-unplug.
    """

    dma_mask: int | None = None
    id: str | None = None

    def arguments(self, topology: Topology, place: str = "") -> list[str]:  # noqa: ARG002
        """See `GuestDevice.arguments`."""
        mask = None if self.dma_mask is None else f"{self.dma_mask:#x}"
        return _device("edu", {"id": self.id, "dma_mask": mask}, place)


# Without iommu_platform a virtio device bypasses the IOMMU; a legacy one cannot have it.
_THROUGH_IOMMU: dict[str, str | int | None] = {"iommu_platform": "on", "disable-legacy": "on"}


@dataclass(frozen=True, slots=True)
class VirtioRng:
    """A virtio entropy source that does its DMA through the IOMMU; the guest's ``virtio-pci`` drives it.

    Attributes:
        id: QEMU's name of the device, for hot-unplug.
    """

    id: str | None = None

    def arguments(self, topology: Topology, place: str = "") -> list[str]:  # noqa: ARG002
        """See `GuestDevice.arguments`."""
        return _device("virtio-rng-pci", {"id": self.id, **_THROUGH_IOMMU}, place)


@dataclass(frozen=True, slots=True)
class Nvme:
    """An NVMe controller: real DMA by its admin queue, MSI-X.

    Attributes:
        serial: The serial number that it reports.
        size: Bytes of its one namespace, which reads as zeroes and forgets what is written; None: no namespace.
        id: QEMU's name of the device, for hot-unplug.
        image: The file on this machine that is the content of its namespace, in place of ``size``.
    """

    serial: str = "pyiommufd"
    size: int | None = None
    id: str | None = None
    image: str | None = None

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        drive, name = _drive(topology, self.image, self.size)
        properties: dict[str, str | int | None] = {"id": self.id, "serial": self.serial, "drive": name}
        return [*drive, *_device("nvme", properties, place)]


@dataclass(frozen=True, slots=True)
class VirtioDisk:
    """A virtio disk that does its DMA through the IOMMU; the guest's ``virtio-pci`` drives it.

    Attributes:
        image: The file on this machine that is its content.
        serial: The serial number that it reports.
        id: QEMU's name of the device, for hot-unplug.
    """

    image: str
    serial: str = "pyiommufd"
    id: str | None = None

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        drive, name = _drive(topology, self.image, None)
        properties: dict[str, str | int | None] = {"id": self.id, "drive": name, "serial": self.serial}
        return [*drive, *_device("virtio-blk-pci", properties | _THROUGH_IOMMU, place)]


@dataclass(frozen=True, slots=True)
class E1000e:
    """An Intel 82574 network controller: MSI, MSI-X with 5 vectors, BARs of memory and ports.

    Attributes:
        id: QEMU's name of the device, for hot-unplug.
        network: Whether it is connected to a network of QEMU's own, 10.0.2.0/24, in which 10.0.2.2 answers, and
            out of which nothing leads; else to nothing. Not for `Guest.hot_plug`.
    """

    id: str | None = None
    network: bool = False

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        if not self.network:
            return _device("e1000e", {"id": self.id}, place)
        name = f"network{topology.next_number()}"
        return [
            "-netdev",
            f"user,id={name},restrict=on,ipv6=off",
            *_device("e1000e", {"id": self.id, "netdev": name}, place),
        ]


@dataclass(frozen=True, slots=True)
class Igb:
    """An Intel 82576 network controller, connected to nothing: real DMA in loopback, MSI-X. QEMU 8 and newer.

    It works behind a `RootPort` of its own.

    Attributes:
        id: QEMU's name of the device, for hot-unplug.
    """

    id: str | None = None

    def arguments(self, topology: Topology, place: str = "") -> list[str]:  # noqa: ARG002
        """See `GuestDevice.arguments`."""
        return _device("igb", {"id": self.id}, place)


@dataclass(frozen=True, slots=True)
class Xhci:
    """A USB host controller without anything plugged in: 16 vectors by MSI or by MSI-X.

    Attributes:
        msi: Whether it has MSI.
        msix: Whether it has MSI-X.
        id: QEMU's name of the device, for hot-unplug.
    """

    msi: bool = True
    msix: bool = True
    id: str | None = None

    def arguments(self, topology: Topology, place: str = "") -> list[str]:  # noqa: ARG002
        """See `GuestDevice.arguments`."""
        words = {True: "on", False: "off"}
        return _device("nec-usb-xhci", {"id": self.id, "msi": words[self.msi], "msix": words[self.msix]}, place)


@dataclass(frozen=True, slots=True)
class Ivshmem:
    """A device whose BAR 2 is plain memory: what is written there stays. Not for `Guest.hot_plug`.

    Attributes:
        size: Bytes of that memory, a power of two.
        id: QEMU's name of the device.
    """

    size: int = 1 << 20
    id: str | None = None

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        name = f"memory{topology.next_number()}"
        memory = ["-object", f"memory-backend-ram,id={name},share=on,size={self.size}"]
        return [*memory, *_device("ivshmem-plain", {"id": self.id, "memdev": name}, place)]


@dataclass(frozen=True, slots=True)
class RawDevice:
    """A device given as QEMU's own ``-device`` argument, such as ``edu,dma_mask=0xffffffff``."""

    argument: str

    def arguments(self, topology: Topology, place: str = "") -> list[str]:  # noqa: ARG002
        """See `GuestDevice.arguments`."""
        return ["-device", f"{self.argument}{place}"]


@dataclass(frozen=True, slots=True)
class RootPort:
    """A PCI Express root port with one device behind it: in a group of its own, and removable.

    Attributes:
        device: What sits behind the port; None: nothing yet, for `Guest.hot_plug`.
    """

    device: GuestDevice | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            check_device(self.device)

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        number = topology.next_number()
        port = ["-device", f"pcie-root-port,id=rp{number},chassis={number}{place}"]
        return port if self.device is None else [*port, *self.device.arguments(topology, f",bus=rp{number}")]


@dataclass(frozen=True, slots=True, init=False)
class SharedGroup:
    """Devices that share one IOMMU group: they sit behind one PCIe-to-PCI bridge, which hides who speaks.

    The bridge is behind a root port. As the first port of a machine its devices are 02:01.0, 02:02.0, …

    Attributes:
        devices: The devices behind the bridge, in slot order from 1.
    """

    devices: tuple[GuestDevice, ...]

    def __init__(self, *devices: GuestDevice) -> None:
        for device in devices:
            check_device(device)
        object.__setattr__(self, "devices", devices)

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        number = topology.next_number()
        result = ["-device", f"pcie-root-port,id=rp{number},chassis={number}{place}"]
        result += ["-device", f"pcie-pci-bridge,id=br{number},bus=rp{number}"]
        for slot, device in enumerate(self.devices, start=1):
            result += device.arguments(topology, f",bus=br{number},addr={slot:#x}")
        return result


@dataclass(frozen=True, slots=True, init=False)
class MultiFunction:
    """Devices that share one IOMMU group as the functions of one slot, behind a root port.

    Unlike those behind a bridge each speaks by an id of its own, as Arm's IOMMU needs. As the first port of a machine
    its devices are 01:00.0, 01:00.1, …

    Attributes:
        devices: The devices, in order of their functions; at most 8.
    """

    devices: tuple[GuestDevice, ...]

    def __init__(self, *devices: GuestDevice) -> None:
        for device in devices:
            check_device(device)
        if len(devices) > 8:
            raise ValueError(f"a slot has 8 functions, not {len(devices)}")
        object.__setattr__(self, "devices", devices)

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        number = topology.next_number()
        result = ["-device", f"pcie-root-port,id=rp{number},chassis={number}{place}"]
        for function, device in enumerate(self.devices):
            shared = ",multifunction=on" if function == 0 else ""
            result += device.arguments(topology, f",bus=rp{number},addr=0x0.{function}{shared}")
        return result


DEFAULT_DEVICES: tuple[GuestDevice, ...] = (Edu(), SharedGroup(Edu(), Edu(), VirtioRng()))
"""One edu alone in its group; two more share one with a virtio-rng that a host driver uses."""

WIDE_DEVICES: tuple[GuestDevice, ...] = (Edu(dma_mask=2**64 - 1), SharedGroup(Edu(), Edu(), VirtioRng()))
"""The same; the DMA of the first edu reaches all physical addresses, which it takes without an IOMMU."""

ARM_DEVICES: tuple[GuestDevice, ...] = (Edu(), MultiFunction(Edu(), Edu(), VirtioRng()))
"""As `DEFAULT_DEVICES`, for an IOMMU that takes only one of the devices behind a bridge."""

FLAT_DEVICES: tuple[GuestDevice, ...] = (Edu(), Edu())
"""Two edu devices on the root bus."""


def check_iommu(kind: object) -> str:
    """The kind, if it is one of `IOMMU_KINDS`.

    Raises:
        ValueError: It is not.
    """
    if kind not in IOMMU_KINDS:
        raise ValueError(f"choose one of {', '.join(IOMMU_KINDS)}")
    return str(kind)


def architecture_of(iommu: str) -> Architecture:
    """The architecture of the machines that have that kind of IOMMU."""
    return AARCH64 if iommu.startswith("smmuv3") else X86_64


def default_iommu() -> str:
    """The kind of IOMMU of a guest where none was chosen: of this machine's own architecture."""
    return "smmuv3" if AARCH64.native else "intel"


def default_devices(iommu: str) -> tuple[GuestDevice, ...]:
    """The devices of a guest whose devices were not chosen, for a kind of IOMMU."""
    if architecture_of(iommu) is AARCH64:
        # Of the devices behind a PCIe-to-PCI bridge only the first gets a group (Linux 7.3, arm_smmu_insert_master).
        return ARM_DEVICES
    # With a PCIe-to-PCI bridge behind a virtio IOMMU no device of the machine gets a group (Linux 7.3, QEMU 11).
    return {"virtio": FLAT_DEVICES, "none": WIDE_DEVICES}.get(iommu, DEFAULT_DEVICES)


def device_arguments(devices: Iterable[GuestDevice]) -> list[str]:
    """The QEMU arguments of the devices, in the order given."""
    topology = Topology()
    return [argument for device in devices for argument in device.arguments(topology)]


def machine_arguments(architecture: Architecture, accelerator: str, firmware: Path | None = None) -> list[str]:
    """The QEMU arguments of the machine itself: its board, its processor's kind and its firmware.

    Args:
        architecture: The machine's.
        accelerator: QEMU's ``-accel`` argument.
        firmware: The UEFI of an aarch64 machine, without which Linux sees no ACPI tables there.
    """
    if architecture is X86_64:
        # Without the SATA controller of its own the kernel does not wait for six links that come up empty.
        return ["-machine", "q35,kernel-irqchip=split,sata=off", "-cpu", "max"]
    # Its GICv2 has no ITS: the kernel then takes interrupts for not isolated and refuses every bind. Emulated, the
    # newest processor takes twice as long as this one for what it has more.
    cpu = "cortex-a72" if accelerator.startswith("tcg") else "max"
    board = ["-machine", "virt,gic-version=3,iommu=smmuv3,acpi=on", "-cpu", cpu]
    return board if firmware is None else [*board, "-bios", str(firmware)]


def iommu_arguments(kind: str, properties: Collection[str]) -> list[str]:
    """The QEMU arguments of a virtual IOMMU; they go before the devices that it covers.

    AMD's and virtio's are PCI functions themselves and take the first slot of the root bus.

    Args:
        kind: One of `IOMMU_KINDS`.
        properties: What this QEMU's device of that kind can be given (see `iommu_device`).

    Raises:
        ValueError: No such kind.
        LookupError: This QEMU's device lacks what the kind needs.
    """
    match kind:
        case "none" | "smmuv3" | "smmuv3-nested":
            return []  # Arm's is of the board
        case "intel":
            # 39 bits, the default, is less than the CPU's own address width.
            return ["-device", "intel-iommu,intremap=on,device-iotlb=on,aw-bits=48"]
        case "intel-first-stage":
            # QEMU 11 took the experimental prefix off both names.
            for scalable, first_stage in (("scalable-mode", "fsts"), ("x-scalable-mode", "x-flts")):
                if first_stage in properties:
                    scalable = scalable if scalable in properties else f"x-{scalable}"
                    return ["-device", f"intel-iommu,intremap=on,aw-bits=48,{scalable}=on,{first_stage}=on"]
            raise LookupError("first-stage translation in intel-iommu (QEMU 9.2 or newer)")
        case "amd":
            if "dma-remap" not in properties:
                raise LookupError("DMA remapping in amd-iommu (QEMU 10.2 or newer)")
            return ["-device", "amd-iommu,dma-remap=on,intremap=on,xtsup=on"]
        case "virtio":
            return ["-device", "virtio-iommu-pci"]
    raise ValueError(f"no IOMMU kind {kind!r}: choose one of {', '.join(IOMMU_KINDS)}")


def iommu_device(kind: str) -> str | None:
    """The QEMU device whose properties `iommu_arguments` asks for; None where it needs none."""
    return {"intel-first-stage": "intel-iommu", "amd": "amd-iommu"}.get(kind)


def iommu_kernel_arguments(kind: str) -> list[str]:
    """What the guest's kernel command line needs for the IOMMU."""
    return {"intel": ["intel_iommu=on"], "intel-first-stage": ["intel_iommu=on,sm_on"]}.get(kind, [])
