"""A QEMU guest with a virtual IOMMU, to run code that needs a real iommufd."""

TYPE_CHECKING = False  # as in the package above
if TYPE_CHECKING:
    from pyiommufd.testing.errors import GuestError, GuestMissingError, GuestTimeoutError, KernelBuildError
    from pyiommufd.testing.guest.guest import Guest
    from pyiommufd.testing.guest.machine import (
        E1000e,
        Edu,
        GuestDevice,
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
else:
    from pyiommufd.on_demand import on_demand as _on_demand

    __getattr__, __dir__ = _on_demand(
        __name__,
        {
            "errors": "GuestError GuestMissingError GuestTimeoutError KernelBuildError",
            "guest.guest": "Guest",
            "guest.machine": """
                E1000e Edu GuestDevice Igb Ivshmem MultiFunction Nvme RawDevice RootPort SharedGroup VirtioDisk
                VirtioRng Xhci
            """,
            "machine": "",
        },
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
    "MultiFunction",
    "Nvme",
    "RawDevice",
    "RootPort",
    "SharedGroup",
    "VirtioDisk",
    "VirtioRng",
    "Xhci",
]
