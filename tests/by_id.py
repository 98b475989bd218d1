"""iommufd ioctls by bare ids, bypassing the library's objects, as another process would issue them."""

from __future__ import annotations

from pyiommufd import IOMMUFD, uapi
from pyiommufd.uapi import raw

BOTH: int = uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE
FIXED: int = uapi.IOMMU_IOAS_MAP_FIXED_IOVA


def destroy(iommufd: IOMMUFD, object_id: int) -> None:
    """IOMMU_DESTROY."""
    raw.ioctl(iommufd.fileno(), uapi.IOMMU_DESTROY, raw.struct("iommu_destroy", id=object_id))


def map_memory(fd: int, ioas_id: int, address: int, length: int, iova: int | None) -> int:
    """IOMMU_IOAS_MAP of any piece of memory, on page boundaries or not. Returns its iova."""
    flags = BOTH if iova is None else BOTH | FIXED
    command = raw.struct("iommu_ioas_map", ioas_id=ioas_id, flags=flags, user_va=address, length=length, iova=iova or 0)
    raw.ioctl(fd, uapi.IOMMU_IOAS_MAP, command)
    return command.iova


def unmap(fd: int, ioas_id: int, iova: int, length: int) -> int:
    """IOMMU_IOAS_UNMAP. Returns how many bytes."""
    command = raw.struct("iommu_ioas_unmap", ioas_id=ioas_id, iova=iova, length=length)
    raw.ioctl(fd, uapi.IOMMU_IOAS_UNMAP, command)
    return command.length
