"""The guest kernel's configuration: our options, on top of others or alone, and whether they took."""

from __future__ import annotations

import re
from pathlib import Path

from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture

_FRAGMENT = Path(__file__).with_name("guest.config")
_ON_TOP = {AARCH64: Path(__file__).with_name("guest-arm64.config")}

_ESSENTIAL = (
    # The guest does not get as far as a command, or its death cannot be seen, without these.
    "64BIT", "PRINTK", "BLK_DEV_INITRD", "BINFMT_ELF", "BINFMT_SCRIPT", "EPOLL", "FUTEX", "PROC_FS", "SYSFS", "TMPFS",
    "DEVTMPFS", "OVERLAY_FS", "NET_9P_VIRTIO", "9P_FS", "VIRTIO_PCI", "VIRTIO_CONSOLE", "UNIX", "MULTIUSER", "MODULES",
    # Nor is there anything to test.
    "PCI", "PCI_MSI", "PCIEPORTBUS", "IOMMUFD", "VFIO", "VFIO_PCI", "VFIO_DEVICE_CDEV",
)  # fmt: skip
_ESSENTIAL_OF = {
    X86_64: ("SERIAL_8250_CONSOLE", "IRQ_REMAP", "INTEL_IOMMU"),
    AARCH64: ("SERIAL_AMBA_PL011_CONSOLE", "EFI_STUB", "ACPI_TABLE_UPGRADE", "ARM_GIC_V3_ITS", "ARM_SMMU_V3"),
}


def fragment(architecture: Architecture) -> str:
    """The options of a guest's kernel, in the form of a kernel configuration.

    Those for x86-64 are the file as it is, comments and all: kernels in caches are known by it.
    """
    text = _FRAGMENT.read_text()
    on_top = _ON_TOP.get(architecture)
    return text if on_top is None else merge(text, on_top.read_text())


def essential(architecture: Architecture) -> frozenset[str]:
    """The options that a kernel for the guest cannot be without."""
    return frozenset(f"CONFIG_{name}" for name in (*_ESSENTIAL, *_ESSENTIAL_OF[architecture]))


def parse(text: str) -> dict[str, str]:
    """The options of a kernel configuration, by name; those that are off as ``n``."""
    options = {}
    for line in text.splitlines():
        if match := re.match(r"(CONFIG_\w+)=(.*)", line):
            options[match[1]] = match[2]
        elif match := re.match(r"# (CONFIG_\w+) is not set", line):
            options[match[1]] = "n"
    return options


def merge(base: str, fragment: str) -> str:
    """A configuration with the fragment's options in place of its own."""
    options = parse(base) | parse(fragment)
    lines = (f"# {name} is not set" if value == "n" else f"{name}={value}" for name, value in options.items())
    return "\n".join(lines) + "\n"


def unmet(fragment: str, result: str) -> list[str]:
    """The options of the fragment that a finished configuration does not have, as ``CONFIG_X=y``.

    A module in place of built-in code does not count: the guest loads none by itself. The other way round does.
    """
    got = parse(result)
    missing = []
    for name, value in parse(fragment).items():
        accepted = {"m", "y"} if value == "m" else {value}
        if got.get(name, "n") not in accepted:
            missing.append(f"{name}={value}")
    return missing
