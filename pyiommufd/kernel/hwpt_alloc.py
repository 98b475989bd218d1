"""How an explicit page table is made, and what is said when the kernel refuses to."""

from __future__ import annotations

import contextlib
import operator
from typing import TYPE_CHECKING

from .. import uapi
from ..diagnose.hwpt import hwpt_alloc_error
from ..errors import IoctlError
from ..uapi import ioctls
from .fault_queue import FaultQueue
from .hwpt import HWPT
from .ioas import IOAS
from .trial import unfit_mappings

if TYPE_CHECKING:
    from .attachable import Attachable

_FLAGS: dict[str, int] = {
    "nest_parent": uapi.IOMMU_HWPT_ALLOC_NEST_PARENT,
    "dirty_tracking": uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
    "pasid": uapi.IOMMU_HWPT_ALLOC_PASID,
    "fault_queue": uapi.IOMMU_HWPT_FAULT_ID_VALID,
}


def alloc_hwpt(
    device: Attachable, ioas: IOAS, wanted: dict[str, bool], queue: FaultQueue | None, data_type: int, data: bytes
) -> HWPT:
    """Make a page table; see `Attachable.alloc_hwpt`. The iommufd's lock is held.

    Args:
        device: For its IOMMU.
        ioas: The address space.
        wanted: The arguments that stand for flags, by their names.
        queue: For page requests, or None.
        data_type: What the data is.
        data: The IOMMU driver's own data.
    """
    if not isinstance(ioas, IOAS):
        raise TypeError(f"a page table is made for an IOAS, not for {type(ioas).__name__}")
    iommufd, fd = device.iommufd, ioas.fd()
    if ioas.iommufd is not iommufd:
        raise ValueError(f"{ioas!r} belongs to another IOMMUFD than {device.name}")
    data_type, data = operator.index(data_type), bytes(memoryview(data))
    if not 0 <= data_type < 1 << 32:
        raise ValueError(f"a data type is a number of 32 bits, not {data_type}")
    if queue is not None:
        if not isinstance(queue, FaultQueue):
            raise TypeError(f"page requests go to a FaultQueue, not to {type(queue).__name__}")
        queue.fd()  # closed, or of the parent process
        if queue.iommufd is not iommufd:
            raise ValueError(f"{queue!r} belongs to another IOMMUFD than {device.name}")
    names = [name for name, on in wanted.items() if on]
    names += ["fault_queue"] if queue is not None else []
    fault_id = 0 if queue is None else queue.id
    flags = sum(_FLAGS[name] for name in names)
    try:
        hwpt_id = ioctls.hwpt_alloc(
            fd, device.id, ioas.id, flags=flags, data_type=data_type, data=data, fault_id=fault_id
        )
    except IoctlError as error:
        code, unfit = error.errno or 0, []
        with contextlib.suppress(IoctlError):  # what could not be tried is not named
            unfit = unfit_mappings(fd, device.id, ioas, code)
        raise hwpt_alloc_error(code, device.host, repr(ioas), names, list(map(str, unfit))) from None
    try:
        hwpt = HWPT(iommufd, hwpt_id, ioas, device.host, flags, queue)
        iommufd.remember(hwpt)
    except BaseException:
        ioctls.destroy(fd, hwpt_id)  # a signal handler raised
        raise
    return hwpt
