"""Where the disks of this machine are."""

from __future__ import annotations

from pathlib import Path

from pyiommufd import HostDevice


def node_of(device: HostDevice) -> Path | None:
    """The block device of an NVMe disk, once the kernel has found it: that may be after the driver is bound."""
    paths = [Path("/dev", path.name) for path in device.sys_path.glob("nvme/nvme*/nvme*n1")]
    return paths[0] if paths and paths[0].is_block_device() else None
