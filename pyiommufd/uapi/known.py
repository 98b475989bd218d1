"""Which iommufd requests the running kernel supports: found by trying, not from its version."""

from __future__ import annotations

import errno
import fcntl

from pyiommufd import uapi

REQUESTS = (
    "IOMMU_DESTROY", "IOMMU_IOAS_ALLOC", "IOMMU_IOAS_ALLOW_IOVAS", "IOMMU_IOAS_COPY", "IOMMU_IOAS_IOVA_RANGES",
    "IOMMU_IOAS_MAP", "IOMMU_IOAS_UNMAP", "IOMMU_OPTION", "IOMMU_VFIO_IOAS", "IOMMU_HWPT_ALLOC", "IOMMU_GET_HW_INFO",
    "IOMMU_HWPT_SET_DIRTY_TRACKING", "IOMMU_HWPT_GET_DIRTY_BITMAP", "IOMMU_HWPT_INVALIDATE",
    "IOMMU_FAULT_QUEUE_ALLOC", "IOMMU_IOAS_MAP_FILE", "IOMMU_VIOMMU_ALLOC", "IOMMU_VDEVICE_ALLOC",
    "IOMMU_IOAS_CHANGE_PROCESS", "IOMMU_VEVENTQ_ALLOC", "IOMMU_HW_QUEUE_ALLOC", "IOMMU_IOAS_NOIOMMU_GET_PA",
)  # fmt: skip
"""The requests of an iommufd, in the order in which the kernel got them."""


def known_requests(fd: int) -> dict[str, bool]:
    """Whether the kernel knows each of `REQUESTS`. Changes nothing: no request is well-formed."""
    return {name: _is_known(fd, int(getattr(uapi, name))) for name in REQUESTS}


def _is_known(fd: int, request: int) -> bool:
    try:
        # Every structure begins with its size. 0 is less than any request takes: EINVAL where it is known (Linux 7.3,
        # drivers/iommu/iommufd/main.c), and ENOTTY where it is not.
        fcntl.ioctl(fd, request, bytes(8))
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return False
        if error.errno != errno.EINVAL:
            raise
    return True
