"""VF tokens: the secret that the users of a physical function and of its virtual functions share.

The kernel wants it at the bind of a virtual function whose physical function is on a vfio driver too, and at that of a
physical function whose virtual ones are in use (Linux 7.3, drivers/vfio/pci/vfio_pci_core.c,
vfio_pci_core_match_token_uuid). Kernels from before VFIO_DEVICE_BIND_FLAG_TOKEN, such as 6.12, want none with iommufd,
and refuse one.
"""

from __future__ import annotations

import uuid

from pyiommufd.host.discovery.devices import HostDevice


def as_token(token: uuid.UUID | str | bytes) -> uuid.UUID:
    """The token, a UUID as such, as text or as its 16 bytes, as a UUID.

    Raises:
        ValueError, TypeError: It is none.
    """
    if isinstance(token, uuid.UUID):
        return token
    if isinstance(token, bytes):
        if len(token) != 16:
            raise ValueError(f"a VF token has 16 bytes, not {len(token)}")
        return uuid.UUID(bytes=token)
    if not isinstance(token, str):
        raise TypeError(f"a VF token is a UUID, not {type(token).__name__}")
    try:
        return uuid.UUID(token)
    except ValueError:
        raise ValueError(f"{token!r} is not a UUID, which a VF token has to be") from None


def takes_token(device: HostDevice) -> bool:
    """Whether the kernel takes a VF token at the bind of this device; for others it answers EINVAL.

    It does for a virtual function whose physical function is on a vfio driver, and for a physical function: that one's
    token is set by it.
    """
    physical = device.physical_function
    return physical.on_vfio if physical is not None else (device.sys_path / "sriov_totalvfs").exists()
