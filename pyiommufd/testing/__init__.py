"""A QEMU guest with a virtual IOMMU, to run code that needs a real iommufd."""

from pyiommufd.testing.errors import GuestError, GuestMissingError, GuestTimeoutError, KernelBuildError
from pyiommufd.testing.guest.guest import Guest
from pyiommufd.testing.guest.machine import (
    E1000e,
    Edu,
    GuestDevice,
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

__all__ = [
    "E1000e",
    "Edu",
    "Guest",
    "GuestDevice",
    "GuestError",
    "GuestMissingError",
    "GuestTimeoutError",
    "Igb",
    "Ivshmem",
    "KernelBuildError",
    "Nvme",
    "RawDevice",
    "RootPort",
    "SharedGroup",
    "VirtioDisk",
    "VirtioRng",
    "Xhci",
]
