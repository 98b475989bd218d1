"""The kernel that runs: how it was built, and what it says of interrupts. Everything may be unknown."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from pyiommufd.host import sysfs


@functools.cache
def _configuration(*files: Path) -> str | None:
    for path in files:
        try:
            data = path.read_bytes()
            if path.suffix == ".gz":
                import gzip  # here, as most kernels have the configuration as a plain file

                data = gzip.decompress(data)
            return data.decode("ascii", "replace")
        except (OSError, EOFError):
            continue
    return None


def kernel_option(name: str) -> str | None:
    """How the running kernel was configured: ``y``, ``m``, ``n``, or another value; None where nothing here tells.

    Args:
        name: The option, without ``CONFIG_``.
    """
    release = os.uname().release
    text = _configuration(
        sysfs.PROC / "config.gz", sysfs.BOOT / f"config-{release}", sysfs.MODULES / release / "config"
    )
    if text is None:
        return None
    match = re.search(rf"^CONFIG_{name}=(.*)$", text, re.MULTILINE)
    return match[1] if match else "n"


def interrupts_isolated() -> bool | None:
    """Whether the IOMMU remaps interrupts, so that a device cannot raise another's; None where that is not told.

    The kernel has no attribute for it. On x86 the names of the interrupt controllers in ``/proc/interrupts`` tell:
    those behind a remapping unit are called ``IR-…``. What iommufd asks, domain by domain, may come out as no where
    this says yes (Linux 7.3 on AMD's IOMMU in QEMU).
    """
    if os.uname().machine not in ("x86_64", "i686"):
        return None
    controllers = set(re.findall(r"\s((?:IR-)?(?:PCI-MSIX?|IO-APIC))\b", sysfs.read(sysfs.PROC / "interrupts") or ""))
    if not controllers:
        return None
    return any(name.startswith("IR-") for name in controllers)


def unsafe_interrupts_allowed() -> bool | None:
    """Whether iommufd binds devices whose interrupts are not isolated; None where its module is not there."""
    text = sysfs.read(sysfs.SYS / "module/iommufd/parameters/allow_unsafe_interrupts")
    return None if text is None else text in ("Y", "1")


def interrupts_refused() -> bool:
    """Whether iommufd refuses every bind because interrupts are not isolated, as far as that is told."""
    return interrupts_isolated() is False and not unsafe_interrupts_allowed()


def has_cdevs() -> bool | None:
    """Whether vfio devices get nodes under ``/dev/vfio/devices``; None where vfio is not loaded and nothing tells."""
    majors = (sysfs.read(sysfs.PROC / "devices") or "").split()
    if "vfio-dev" in majors:  # registered by vfio as it starts (Linux 7.3, drivers/vfio/device_cdev.c)
        return True
    if (sysfs.SYS / "module/vfio").is_dir():
        return False
    option = kernel_option("VFIO_DEVICE_CDEV")
    return None if option is None else option == "y"
