"""Why IOMMU_HWPT_ALLOC was refused (Linux 7.3: drivers/iommu/iommufd/hw_pagetable.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyiommufd.diagnose.objects import WRONG_DATA, mediated_causes
from pyiommufd.errors import Cause, IoctlError, ioctl_error
from pyiommufd.host.discovery.devices import HostDevice

REQUEST = "IOMMU_HWPT_ALLOC"


def hwpt_alloc_error(
    code: int, device: HostDevice, ioas: str, options: Sequence[str], mappings: Sequence[str]
) -> IoctlError:
    """The exception for a page table that the kernel would not make.

    Args:
        code: The errno.
        device: For whose IOMMU it was to be.
        ioas: The address space, in words.
        options: What was asked of it, by the names of the arguments.
        mappings: The mappings that are in the way, in words.
    """
    asked = ", ".join(options)
    causes: tuple[Cause, ...] = ()
    if code == errno.ENOENT:
        causes = mediated_causes(device)
    elif code in (errno.EOPNOTSUPP, errno.ENOTTY):
        causes = (
            Cause(
                f"the IOMMU before {device.name}, or this kernel, has no page tables with {asked}"
                if asked
                else f"the IOMMU before {device.name}, or this kernel, makes no page tables on request",
                "Device.hw_info().capabilities says what it can do",
                "attach to the address space itself" if not asked else f"do without {asked}",
            ),
        )
    elif mappings:
        which = "; ".join(mappings[:8]) + (" …" if len(mappings) > 8 else "")
        causes = (
            Cause(
                f"a page table of {device.name} cannot hold what is mapped into {ioas}",
                f"it has mapped {which}",
                "unmap that; map with this device attached to learn at once what it cannot reach",
            ),
        )
    elif code == errno.EINVAL and "nest_parent" in options:
        causes = (Cause(f"{device.name} cannot have other page tables nested in this one", f"asked for: {asked}"),)
    elif code == errno.EINVAL:
        causes = (WRONG_DATA.general,)
    return ioctl_error(REQUEST, code, f"{device.name}, {ioas}", causes)
