"""What a machine as a whole lacks for passthrough, and the way out: said in these words by commands and exceptions."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import iommu_has_groups
from pyiommufd.host.drivers import module_file
from pyiommufd.host.running_kernel import kernel_option

_GUEST = "or run in a guest that has one: pyiommufd guest -- COMMAND"

KERNEL = (
    "boot a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV (6.6 or newer): Fedora, Arch and Ubuntu have one; "
    "Debian has none, nor have its backports: build one from its linux-source with CONFIG_IOMMUFD=m and "
    f"CONFIG_VFIO_DEVICE_CDEV=y (docs/hosts.md, A kernel for Debian), {_GUEST}"
)
"""How to get a kernel that has iommufd, and nodes for vfio devices."""

# What a kernel that does not use the IOMMU it is told of has to be started with.
_BOOT_WITH = {
    "DMAR": "boot with intel_iommu=on",
    "IVRS": "the kernel uses it unless it fails: dmesg has lines of AMD-Vi that say why",
}
_NOIOMMU = "enable_unsafe_noiommu_mode"
NOIOMMU_OFF = f"echo 0 > /sys/module/vfio/parameters/{_NOIOMMU}"
"""How vfio is told to take no device without an IOMMU."""
_OFF = ("iommu=off", "intel_iommu=off", "amd_iommu=off")


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that every bind takes, and that this machine does not have.

    Attributes:
        summary: What it is.
        evidence: What was seen.
        fix: The way out.
    """

    summary: str
    evidence: str
    fix: str

    def __str__(self) -> str:
        return f"{self.summary}; {self.fix}"


NOT_COVERED = Lack(
    "no IOMMU: this machine's one does not cover the device", "it has no iommu_group", "it cannot be passed through"
)
"""That a device has none, on a machine that has one."""


def no_iommu() -> Lack | None:
    """That this machine uses no IOMMU, and so has no groups but those that VFIO makes; None: it uses one."""
    if iommu_has_groups():
        return None
    tables = sysfs.SYS / "firmware/acpi/tables"
    table = next((name for name in ("DMAR", "IVRS", "IORT", "VIOT") if (tables / name).exists()), None)
    words = (sysfs.read(sysfs.PROC / "cmdline") or "").split()
    given = " ".join(word for word in words if "iommu" in word) or "nothing about an IOMMU"
    seen = f"no groups of one in /sys/kernel/iommu_groups; the kernel's command line has {given}"
    if off := [word for word in words if word in _OFF]:
        return Lack(
            f"no IOMMU: the kernel was told to use none ({' '.join(off)})", seen, f"boot without {' and '.join(off)}"
        )
    if table is not None:
        fix = _BOOT_WITH.get(table, "the kernel needs the driver of that IOMMU built in")
        return Lack(f"no IOMMU: the kernel does not use the one that firmware describes ({table})", seen, fix)
    return Lack(
        "no IOMMU: this machine has none, or it is off in the firmware",
        f"no ACPI table of one; {seen}",
        f"turn VT-d (and boot with intel_iommu=on) or AMD-Vi on in the firmware, give a VM a virtual one, {_GUEST}",
    )


REACHES_ALL = "its DMA reaches all memory, and nothing blocks it"
"""What a device without an IOMMU does, whoever drives it."""


def untranslated(device: HostDevice) -> str:
    """What the DMA of a device does for which no IOMMU translates, in words; empty: one does, or may."""
    return REACHES_ALL if device.without_iommu else "its parent's driver does its DMA" if device.is_mediated else ""


def no_noiommu_mode() -> Lack | None:
    """That vfio takes no device without an IOMMU, as it may be told to (Linux 7.3, drivers/vfio); None: it does."""
    module = sysfs.SYS / "module/vfio"
    value = sysfs.read(module / "parameters" / _NOIOMMU)
    if value in ("Y", "1"):
        return None
    option = kernel_option("VFIO_NOIOMMU")
    if value is not None:
        seen, fix = f"it is {value}", f"echo 1 > /sys/module/vfio/parameters/{_NOIOMMU}"
    elif option == "n" or module.is_dir():
        seen, fix = "this kernel does not have it", "boot a kernel with CONFIG_VFIO_NOIOMMU"
    else:
        seen, fix = "vfio is not loaded", f"modprobe vfio {_NOIOMMU}=1"
    return Lack(f"vfio takes a device without an IOMMU only where its {_NOIOMMU} is on", seen, fix)


def no_noiommu_node(device: HostDevice) -> Lack | None:
    """That vfio gives a device without an IOMMU no node for iommufd; None: it does, or that is not known.

    That takes CONFIG_IOMMUFD_NOIOMMU, which VFIO_NOIOMMU selects since Linux 7.3 (drivers/vfio/Kconfig).
    """
    if device.on_vfio:
        if device.vfio_cdev is not None:
            return None
        seen = f"{device.name} is on {device.driver}, and its vfio-dev folder has no dev file"
    elif kernel_option("IOMMUFD_NOIOMMU") == "n":
        seen = f"kernel {os.uname().release} has no CONFIG_IOMMUFD_NOIOMMU"
    else:
        return None
    node = f"/dev/vfio/noiommu-{'NUMBER' if device.group_id is None else device.group_id}"
    return Lack(
        "this kernel gives devices without an IOMMU no nodes for iommufd",
        seen,
        f"use VFIO's groups ({node}), or boot a kernel with CONFIG_IOMMUFD_NOIOMMU (7.3 or newer)",
    )


def no_iommufd() -> Lack | None:
    """That the kernel that runs has no iommufd, or has not loaded it; None: it is there."""
    if (sysfs.SYS / "class/misc/iommu").exists():
        return None
    return no_module("iommufd", "IOMMUFD", KERNEL)


def no_vfio_driver(driver: str) -> Lack:
    """That a vfio driver, such as vfio-pci, is not loaded: whether it can be."""
    option = driver.replace("-", "_").upper()
    return no_module(driver, option, f"boot a kernel with CONFIG_{option}")


def no_module(module: str, option: str, kernel: str) -> Lack:
    """That a module is not loaded: whether it can be.

    Args:
        module: Its name.
        option: What it is built by, without ``CONFIG_``.
        kernel: The way out where this kernel does not have it.
    """
    seen = f"kernel {os.uname().release}: CONFIG_{option}={kernel_option(option) or 'unknown'}"
    if (file := module_file(module)) is not None:
        fix = f"modprobe {module}; for every boot: echo {module} > /etc/modules-load.d/{module}.conf"
        return Lack(f"the module {module} is not loaded", f"{seen}; {file}", fix)
    return Lack(f"this kernel has no {module}", seen, kernel)
