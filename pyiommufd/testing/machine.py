"""The devices of a guest, under the name that users import them by."""

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
    "GuestDevice",
    "Igb",
    "Ivshmem",
    "Nvme",
    "RawDevice",
    "RootPort",
    "SharedGroup",
    "VirtioDisk",
    "VirtioRng",
    "Xhci",
]
