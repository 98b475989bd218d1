"""The devices of the guest that tests/guest/claims runs in."""

from __future__ import annotations

from pyiommufd.testing.guest.machine import DEFAULT_DEVICES, Edu, GuestDevice, RawDevice, RootPort, VirtioRng, Xhci

# Two virtual functions, which QEMU leaves switched off: a host driver's probe of one fails.
_NVME = "nvme,serial=functions,subsys=subsystem0,sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2"

CLAIMS_DEVICES: tuple[GuestDevice, ...] = (
    *DEFAULT_DEVICES,
    RawDevice("nvme-subsys,id=subsystem0"),
    RootPort(RawDevice(f"{_NVME},max_ioqpairs=6,msix_qsize=5")),
    RootPort(VirtioRng()),
    RootPort(Xhci()),
    Edu(),
    Edu(),
)
"""Those of every guest, an NVMe controller with virtual functions, a virtio-rng and a USB controller, each alone in its
group, two more edu."""
