"""Checks of the platform: IOMMU, kernel and limits. What each looks at is `Finding.check`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pyiommufd.host import sysfs
from pyiommufd.host.checks.finding import Finding, Machine, State
from pyiommufd.host.checks.lacks import (
    KERNEL,
    NOIOMMU_OFF,
    Lack,
    no_iommu,
    no_iommufd,
    no_noiommu_mode,
    no_noiommu_node,
    no_vfio_driver,
)
from pyiommufd.host.limits import lockable_memory
from pyiommufd.host.namespaces import namespace, visibility_note
from pyiommufd.host.running_kernel import has_cdevs, interrupts_isolated, unsafe_interrupts_allowed
from pyiommufd.host.uses.processes import look_at_processes
from pyiommufd.printable import counted, listed


def iommu(machine: Machine) -> Iterator[Finding]:
    """Whether an IOMMU is on, and for which devices."""
    folder = sysfs.SYS / "class/iommu"
    units = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    units = [name for name in units if "selftest" not in name]
    if machine.iommu_groups:
        evidence = f"{', '.join(units) or 'an IOMMU'}; {counted(len(machine.iommu_groups), 'group')}"
        yield Finding("iommu", State.OK, "an IOMMU is on", evidence)
        without = tuple(d.name for d in machine.devices if d.without_iommu and d.subsystem == "pci")
        if without:
            yield Finding(
                "iommu",
                State.WARNING,
                "some devices are not covered by it",
                f"{len(without)} PCI devices have no IOMMU group",
                "these cannot be passed through",
                without,
            )
    elif (lack := no_iommu()) is not None:
        yield _missing("iommu", lack)
    taken = tuple(device.name for device in machine.devices if device.without_iommu and device.on_vfio)
    mode = no_noiommu_mode()
    if taken or mode is None:
        yield Finding(
            "iommu",
            State.WARNING,
            "vfio has devices without an IOMMU: their DMA reaches all memory, and nothing blocks it"
            if taken
            else "vfio takes devices without an IOMMU, whose DMA then reaches all memory",
            f"on vfio: {listed(taken)}" if taken else "vfio's enable_unsafe_noiommu_mode is Y",
            "unless that is meant: " + (f"pyiommufd release {taken[0]}" if taken else NOIOMMU_OFF),
            taken,
        )


def _missing(check: str, lack: Lack) -> Finding:
    return Finding(check, State.MISSING, lack.summary, lack.evidence, lack.fix)


def iommufd(machine: Machine) -> Iterator[Finding]:
    """Whether the kernel has iommufd, and its node is here."""
    node = machine.dev / "iommu"
    if (sysfs.SYS / "class/misc/iommu").exists():
        if node.exists():
            yield Finding("iommufd", State.OK, "the kernel has iommufd", str(node))
        else:
            yield Finding(
                "iommufd",
                State.MISSING,
                f"the kernel has iommufd, but there is no {node} here",
                "/sys/class/misc/iommu is there",
                "in a container, pass the node in",
            )
        return
    if (lack := no_iommufd()) is not None:
        yield _missing("iommufd", lack)


def cdev(machine: Machine) -> Iterator[Finding]:
    """Whether vfio devices have nodes under ``/dev/vfio/devices``."""
    known, lack = has_cdevs(), no_iommufd()
    nodeless = [device for device in machine.devices if device.on_vfio and device.vfio_cdev is None]
    without = tuple(device.name for device in nodeless if not device.without_iommu)
    if known is False or without:
        yield Finding(
            "cdev",
            State.MISSING,
            "this kernel gives vfio devices no nodes of their own",
            f"{without[0]} is on a vfio driver and has no dev file" if without else "no vfio-dev in /proc/devices",
            "as for iommufd" if lack is not None and lack.fix == KERNEL else KERNEL,
            without,
        )
    elif known:
        yield Finding("cdev", State.OK, "vfio devices have nodes of their own", "/dev/vfio/devices")
        for device in nodeless:
            if (node := no_noiommu_node(device)) is not None:
                yield Finding("cdev", State.WARNING, node.summary, node.evidence, node.fix, (device.name,))
    else:
        yield Finding(
            "cdev", State.UNKNOWN, "whether vfio devices have nodes of their own", "vfio is not loaded", "modprobe vfio"
        )


def vfio_pci(machine: Machine) -> Iterator[Finding]:  # noqa: ARG001 - as all checks
    """Whether the driver vfio-pci is loaded."""
    folder = sysfs.SYS / "bus/pci/drivers/vfio-pci"
    if folder.is_dir():
        yield Finding("vfio-pci", State.OK, "the driver vfio-pci is loaded", str(folder))
    else:
        yield _missing("vfio-pci", no_vfio_driver("vfio-pci"))


def isolated_msi(machine: Machine) -> Iterator[Finding]:
    """Whether devices can raise each other's interrupts."""
    if not machine.iommu_groups:
        return
    isolated, allowed = interrupts_isolated(), unsafe_interrupts_allowed()
    if isolated:
        yield Finding("isolated-msi", State.OK, "interrupts are remapped", "/proc/interrupts has IR- controllers")
    elif isolated is None:
        yield Finding(
            "isolated-msi",
            State.UNKNOWN,
            "whether interrupts are isolated from each other",
            "the kernel has no attribute for it",
            "bind a device: EPERM with no other cause means no",
        )
    elif allowed:
        yield Finding(
            "isolated-msi",
            State.WARNING,
            "devices can raise each other's interrupts, and iommufd was told to accept that",
            "no IR- controller in /proc/interrupts; iommufd.allow_unsafe_interrupts=1",
            "turn interrupt remapping on in the firmware (QEMU's intel-iommu: intremap=on), then that setting off",
        )
    else:
        yield Finding(
            "isolated-msi",
            State.MISSING,
            "devices can raise each other's interrupts: every bind is refused with EPERM",
            "no IR- controller in /proc/interrupts; iommufd.allow_unsafe_interrupts=0",
            "turn interrupt remapping on in the firmware (QEMU's intel-iommu: intremap=on), or accept the risk: "
            "echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts",
        )


def namespaces(machine: Machine) -> Iterator[Finding]:  # noqa: ARG001 - as all checks
    """Whether this process sees what the host does with its devices."""
    evidence = ", ".join(namespace("self", kind) or f"{kind} unknown" for kind in ("pid", "mnt", "net"))
    unseen = look_at_processes(mappings=False).unseen
    if text := visibility_note():
        fix = "look, claim and release from the host"
        yield Finding("namespaces", State.WARNING, text, evidence, fix)
    elif unseen:
        what, where = (" and ".join(sorted(set(words))) for words in zip(*unseen, strict=True))
        text = f"what {what} do with devices is not seen: plan and claim refuse a device that may be in use (unseen)"
        yield Finding("namespaces", State.WARNING, text, evidence, f"look {where}")
    else:
        text = "this process sees the machine as its init does, and may look at all processes"
        yield Finding("namespaces", State.OK, text, evidence)


def address_width(machine: Machine) -> Iterator[Finding]:  # noqa: ARG001 - as all checks
    """Whether the IOMMU reaches all the addresses that the processor has."""
    match = re.search(
        r"^address sizes\s*:\s*(\d+) bits physical", sysfs.read(sysfs.PROC / "cpuinfo") or "", re.MULTILINE
    )
    narrow: list[str] = []
    wide: list[str] = []
    for path in sorted((sysfs.SYS / "class/iommu").glob("*/intel-iommu/cap")):
        # VT-d specification 11.4.2: MGAW in bits 21:16, one less than the width; SAGAW in 12:8, of 39, 48 and 57 bits.
        cap = int(sysfs.read(path) or "0", 16)
        walks = [bits for bit, bits in ((1, 39), (2, 48), (3, 57)) if cap >> 8 & 1 << bit]
        width = min((cap >> 16 & 0x3F) + 1, max(walks, default=64))
        unit = path.parent.parent.name
        (narrow if match and width < int(match[1]) else wide).append(f"{unit}: {width} bits")
    if narrow and match:
        yield Finding(
            "address-width",
            State.WARNING,
            "an IOMMU reaches fewer addresses than the processor has",
            f"{', '.join(narrow)}; the processor's addresses have {match[1]}",
            "map below that (iova ranges tell); in a VM on QEMU: -device intel-iommu,aw-bits=48",
        )
    elif wide:
        seen = f"; the processor's addresses have {match[1]} bits" if match else ""
        yield Finding("address-width", State.OK, "IOMMUs reach all addresses", ", ".join(wide) + seen)


def memlock(machine: Machine) -> Iterator[Finding]:  # noqa: ARG001 - as all checks
    """How much memory this user can map."""
    limit = lockable_memory()
    if limit is None:
        yield Finding("memlock", State.OK, "this user may lock any amount of memory", "CAP_IPC_LOCK, or no limit")
        return
    yield Finding(
        "memlock",
        State.WARNING,
        f"this user can map at most {limit / (1 << 20):g} MiB for DMA, in all processes together",
        f"RLIMIT_MEMLOCK is {limit} bytes, no CAP_IPC_LOCK",
        "a VM needs all its memory, and some more: in /etc/security/limits.d/: USER - memlock unlimited; of a systemd "
        "unit: LimitMEMLOCK=infinity",
    )
