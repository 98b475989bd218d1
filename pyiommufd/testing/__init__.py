"""A QEMU guest with a virtual IOMMU, to run code that needs a real iommufd."""

from pyiommufd.testing.errors import GuestError, GuestMissingError, GuestTimeoutError, KernelBuildError
from pyiommufd.testing.guest import Guest
from pyiommufd.testing.machine import (
    Edu,
    GuestDevice,
    Nvme,
    RawDevice,
    RootPort,
    SharedGroup,
    VirtioRng,
)

__all__ = [
    "Edu",
    "Guest",
    "GuestDevice",
    "GuestError",
    "GuestMissingError",
    "GuestTimeoutError",
    "KernelBuildError",
    "Nvme",
    "RawDevice",
    "RootPort",
    "SharedGroup",
    "VirtioRng",
]
