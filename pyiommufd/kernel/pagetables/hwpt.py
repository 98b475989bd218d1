"""Explicitly allocated page tables (HWPT), for features that the kernel's automatic page tables lack."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.memory.arguments import check_bool, check_range
from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.kernel.pagetables.dirty_bitmap import DirtyBitmap
from pyiommufd.kernel.pagetables.fault_queue import FaultQueue
from pyiommufd.kernel.pagetables.nested import NestedHWPT, alloc_nested
from pyiommufd.kernel.pagetables.nested_data import TypedData
from pyiommufd.kernel.pagetables.trial import unfit_mappings
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.kernel.device.attachable import Attachable
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.memory.ioas import IOAS


class HWPT(KernelObject):
    """A page table that an IOMMU walks, over what an address space maps (IOMMU_HWPT_ALLOC).

    Made by `Device.alloc_hwpt`, for that device; others whose IOMMU can walk it may be attached, too. It shows what
    is mapped into its `ioas`, now and later.

    Thread safety: everything here may be used from any thread.

    Attributes:
        ioas: The address space.
        host: The device that it was made for, as it was then.
        flags: The IOMMU_HWPT_ALLOC flags that it was made with.
        fault_queue: Where page requests of its devices arrive; None: nowhere.
    """

    __slots__ = ("fault_queue", "flags", "host", "ioas")

    def __init__(
        self,
        iommufd: IOMMUFD,
        ioas: IOAS,
        host: HostDevice,
        flags: int,
        fault_queue: FaultQueue | None = None,
    ) -> None:
        super().__init__(iommufd)
        self.fault_queue = fault_queue
        self.ioas = ioas
        self.host = host
        self.flags = flags

    @property
    def uses(self) -> tuple[KernelObject, ...]:
        """The address space, and the fault queue if there is one."""
        return (self.ioas,) if self.fault_queue is None else (self.ioas, self.fault_queue)

    @property
    def _owner(self) -> IOAS:
        return self.ioas

    def alloc_nested(
        self,
        data: TypedData,
        *,
        device: Device | None = None,
        pasid: bool = False,
        fault_queue: FaultQueue | None = None,
    ) -> NestedHWPT:
        """Make a page table of a VM's, nested in this one, for an IOMMU that needs no vIOMMU for that: VT-d's.

        It changes nobody's DMA: `Device.attach` or `Device.replace` does.

        Args:
            data: What the VM's page table is, such as a `VTdStage1`.
            device: For whose IOMMU; None: for that of the device that this one was made for.
            pasid: It can be attached with a PASID, or beside attachments with PASIDs (since Linux 6.15).
            fault_queue: Where page requests of its devices arrive (since Linux 6.11).

        Raises:
            UnsupportedError: The kernel or the IOMMU has no such page tables; an SMMUv3 wants `VIOMMU.alloc_nested`.
            IoctlError: The kernel refused: EINVAL: the data are not of its IOMMU, or this one was made without
                ``nest_parent=True``, or for another IOMMU.
            DeviceNotFoundError: The device that it was made for is not bound any more.
            TypeError, ValueError: That is no such data, device or queue, or of another iommufd.
            ClosedError, ForkedError: It, the device or the queue is closed, or belongs to the parent process.
        """
        return alloc_nested(self, None, data, device, pasid=pasid, fault_queue=fault_queue)

    def set_dirty_tracking(self, on: bool) -> None:
        """Begin or stop to note which pages devices write to (IOMMU_HWPT_SET_DIRTY_TRACKING).

        Starting it discards what was noted before.

        Raises:
            UnsupportedError: It was made without ``dirty_tracking=True``, or the kernel has no dirty tracking.
            IoctlError: The kernel refused.
            TypeError: ``on`` is neither True nor False.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        flags = uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE if check_bool(on, "on") else 0
        try:
            self._call(ioctls.hwpt_set_dirty_tracking, flags)
        except IoctlError as error:
            raise self._failed(error, "IOMMU_HWPT_SET_DIRTY_TRACKING") from None

    def dirty_bitmap(self, iova: int, length: int, *, page_size: int = 4096, clear: bool = True) -> DirtyBitmap:
        """The pages that devices have written to (IOMMU_HWPT_GET_DIRTY_BITMAP).

        Pages that are larger than the IOMMU's are dirty where a part of them is; where the IOMMU's are larger (it
        combines contiguous memory, see `IOAS.huge_pages`), all of a page that it noted is.

        All of the range has to be mapped, by whatever process: Linux 7.3 reports nothing from the first hole on, and
        does not say so. The kernel is asked before anything is read, so that what is refused has cleared nothing; what
        is unmapped while this runs is not seen.

        Args:
            iova: The first address, a multiple of the page size.
            length: Bytes, likewise.
            page_size: Bytes that a bit stands for: a power of two.
            clear: Forget the pages that are read, so that the next call tells of later writes alone. Without it the
                next one has them again.

        Raises:
            UnsupportedError: The page table does not track, or the kernel has no dirty tracking.
            IoctlError: The kernel refused: EINVAL: not a multiple of the IOMMU's page (`IOAS.iova_alignment`).
            ValueError: The numbers are no such range or page size, or not all of the range is mapped: it names the
                first address that is not.
            TypeError: The numbers are no ints.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        iova, length = check_range(iova, length)
        page_size = operator.index(page_size)
        if page_size <= 0 or page_size & (page_size - 1):
            raise ValueError(f"a page size is a power of two, not {page_size}")
        if iova % page_size or length % page_size:
            raise ValueError(
                f"iova {iova:#x} and length {length:#x} have to be multiples of the page size {page_size:#x}"
            )
        if iova + length > 1 << 64:
            raise ValueError(f"iova {iova:#x} and length {length:#x} wrap around the end of the address space")
        no_clear: int = uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR
        if not self.flags & uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING:
            self._read_dirty(iova, page_size, page_size, no_clear)  # the kernel refuses, whatever is mapped
        self._refuse_hole(iova, length)
        return DirtyBitmap(iova, length, page_size, self._read_dirty(iova, length, page_size, 0 if clear else no_clear))

    def _read_dirty(self, iova: int, length: int, page_size: int, flags: int) -> bytearray:
        memory = bytearray(-(-length // page_size // 64) * 8)
        try:
            self._call(ioctls.hwpt_get_dirty_bitmap, flags, iova, length, page_size, memory)
        except IoctlError as error:
            where = f", {IOVARange(iova, iova + length - 1)}"
            raise self._failed(error, "IOMMU_HWPT_GET_DIRTY_BITMAP", where) from None
        return memory

    def _refuse_hole(self, iova: int, length: int) -> None:
        # The kernel takes longer to say it than to read the bits if there are many mappings. What is on record here
        # says it, too, unless others share the iommufd, who may unmap.
        if not self._iommufd.shared and self.ioas._table.covers(iova, length):
            return
        where = IOVARange(iova, iova + length - 1)
        try:
            hole = self.ioas._call(ioctls.ioas_first_hole, iova, length)
        except IoctlError as error:
            raise self._failed(error, error.request, f", {where}") from None
        if hole is not None:
            raise ValueError(
                f"{where} of {self.ioas!r} is not mapped completely: nothing is mapped at {hole:#x}, and the kernel "
                "would report all pages from there on as clean; ask for each mapping by itself (DMAMapping.ranges)"
            )

    def _failed(self, error: IoctlError, request: str, where: str = "") -> IoctlError:
        return ioctl_error(request, error.errno or 0, f"{self!r}{where}")

    def __repr__(self) -> str:
        return f"<HWPT {self.id} of {self.ioas!r}{' closed' if self.closed else ''}>"


_FLAGS: dict[str, int] = {
    "nest_parent": uapi.IOMMU_HWPT_ALLOC_NEST_PARENT,
    "dirty_tracking": uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
    "pasid": uapi.IOMMU_HWPT_ALLOC_PASID,
    "fault_queue": uapi.IOMMU_HWPT_FAULT_ID_VALID,
}


@dataclass(frozen=True)
class HWPTOptions:
    """The options of `Attachable.alloc_hwpt` that set a flag of the request."""

    nest_parent: bool
    dirty_tracking: bool
    pasid: bool
    fault_queue: FaultQueue | None

    @property
    def names(self) -> list[str]:
        """The options that are on."""
        return [name for name in _FLAGS if getattr(self, name)]

    @property
    def flags(self) -> int:
        """Their flags."""
        return sum(_FLAGS[name] for name in self.names)


def alloc_hwpt(device: Attachable, ioas: IOAS, options: HWPTOptions, data_type: int, data: bytes) -> HWPT:
    """Allocate a page table; see `Attachable.alloc_hwpt`. The iommufd's lock is held."""
    data_type, data = operator.index(data_type), bytes(memoryview(data))
    if not 0 <= data_type < 1 << 32:
        raise ValueError(f"a data type is a number of 32 bits, not {data_type}")
    queue = options.fault_queue
    if queue is not None and not isinstance(queue, FaultQueue):
        raise TypeError(f"page requests go to a FaultQueue, not to {type(queue).__name__}")
    for used in (ioas,) if queue is None else (ioas, queue):
        used._live()
        if used.iommufd._context is not device.iommufd._context:
            raise ValueError(f"{used!r} belongs to another IOMMUFD than {device.name}")
    uses = {"dev_id": device._c, "pt_id": ioas._c} | ({} if queue is None else {"fault_id": queue._c})
    flags = options.flags
    hwpt = HWPT(device.iommufd, ioas, device.host, flags, queue)
    try:
        hwpt._create(partial(ioctls.hwpt_alloc, uses=uses, flags=flags, data_type=data_type, data=data))
    except IoctlError as error:
        code = error.errno or 0
        unfit = list(map(str, unfit_mappings(device, ioas, code)))
        raise diagnose.hwpt_alloc_error(code, device.host, repr(ioas), options.names, unfit) from None
    return hwpt
