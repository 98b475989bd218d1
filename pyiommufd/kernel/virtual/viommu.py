"""Virtual IOMMUs: slices of an IOMMU for one VM (IOMMU_VIOMMU_ALLOC)."""

from __future__ import annotations

import mmap
import struct
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import IoctlError
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.memory.arguments import whole
from pyiommufd.kernel.pagetables.invalidation import invalidate
from pyiommufd.kernel.pagetables.nested import NestedHWPT, alloc_nested, check_device
from pyiommufd.kernel.pagetables.nested_data import TypedData, number
from pyiommufd.kernel.virtual.event_queue import VEventQueue, alloc_event_queue
from pyiommufd.kernel.virtual.hw_queue import HWQueue, alloc_hw_queue
from pyiommufd.kernel.virtual.vdevice import VDevice, alloc_vdevice
from pyiommufd.kernel.window import Window
from pyiommufd.printable import OneLine
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.kernel.device.attachable import Attachable
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.pagetables.fault_queue import FaultQueue
    from pyiommufd.kernel.pagetables.hwpt import HWPT


class VIOMMUType(IntEnum):
    """The kinds of virtual IOMMUs (IOMMU_VIOMMU_TYPE_*)."""

    ARM_SMMUV3 = uapi.IOMMU_VIOMMU_TYPE_ARM_SMMUV3
    TEGRA241_CMDQV = uapi.IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV


_CMDQV = struct.Struct("=2Q")


@dataclass(frozen=True, slots=True, repr=False)
class Tegra241VIntf(OneLine):
    """Where the registers of a Tegra241's virtual interface are (struct iommu_viommu_tegra241_cmdqv).

    Attributes:
        mmap_offset: What `VIOMMU.map` is to be given.
        mmap_length: Bytes there.
    """

    mmap_offset: int
    mmap_length: int


class VIOMMU(KernelObject):
    """A slice of an IOMMU for one VM. Made by `Device.alloc_viommu`, and owned by its nesting parent.

    It knows the VM's names of devices (`alloc_vdevice`), which its page tables, commands and events go by. Closing it
    closes what was made of it.

    Thread safety: everything here may be used from any thread.

    Attributes:
        type: The kind: a `VIOMMUType`, or the number of one that is not known here.
        parent: The page table that leads to the VM's memory: stage 2 of all its nested ones.
        host: The device whose IOMMU it is of, as it was then.
        data: What the driver has made of the data that it was given.
    """

    __slots__ = ("_windows", "data", "host", "parent", "type")

    def __init__(self, iommufd: IOMMUFD, parent: HWPT, host: HostDevice, viommu_type: int) -> None:
        super().__init__(iommufd)
        self._windows: weakref.WeakKeyDictionary[Window, None] = weakref.WeakKeyDictionary()
        self.parent = parent
        self.host = host
        self.type = viommu_type
        self.data = b""

    @property
    def uses(self) -> tuple[KernelObject, ...]:
        """Its nesting parent."""
        return (self.parent,)

    @property
    def _owner(self) -> HWPT:
        return self.parent

    @property
    def decoded(self) -> Tegra241VIntf | None:
        """The `data`, decoded; None where their type has none, or is not known here."""
        if self.type == VIOMMUType.TEGRA241_CMDQV and len(self.data) >= _CMDQV.size:
            return Tegra241VIntf(*_CMDQV.unpack_from(self.data))
        return None

    # What is made of it

    def alloc_nested(
        self,
        data: TypedData,
        *,
        device: Device | None = None,
        pasid: bool = False,
        fault_queue: FaultQueue | None = None,
    ) -> NestedHWPT:
        """Make a page table of the VM's, nested in the vIOMMU's parent (IOMMU_HWPT_ALLOC).

        It changes nobody's DMA: `Device.attach` or `Device.replace` does. An SMMUv3's that translates can be attached
        by a device that has a `VDevice` here, and by no other.

        Args:
            data: What the VM's page table is, such as a `SMMUv3Stage1`.
            device: For whose IOMMU: one behind the same as the vIOMMU's; None: the device that it was made for.
            pasid: It can be attached with a PASID, or beside attachments with PASIDs.
            fault_queue: Where page requests of its devices arrive.

        Raises:
            UnsupportedError: The IOMMU has no such page tables.
            IoctlError: The kernel refused: EINVAL: the data are not of its IOMMU, or the device is behind another; EIO:
                a field of the stream table entry is not the VM's; `causes` names it.
            DeviceNotFoundError: The device that it was made for is not bound any more.
            TypeError, ValueError: That is no such data, device or queue, or of another iommufd.
            ClosedError, ForkedError: It, the device or the queue is closed, or belongs to the parent process.
        """
        return alloc_nested(self.parent, self, data, device, pasid=pasid, fault_queue=fault_queue)

    def alloc_vdevice(self, device: Device, virtual_id: int) -> VDevice:
        """Say what the VM calls a device (IOMMU_VDEVICE_ALLOC; since Linux 6.13).

        Args:
            device: A device behind the same IOMMU.
            virtual_id: Its number in the VM: of an SMMUv3 the stream id, of AMD's the device id.

        Raises:
            AlreadyMappedError: The device has one already, of whatever vIOMMU, or the number is another's here.
            IoctlError: The kernel refused: EINVAL: the device is behind another IOMMU.
            TypeError, ValueError: That is no device of this iommufd, or no number of 64 bits.
            ClosedError, ForkedError: It or the device is closed, or belongs to the parent process.
        """
        with self._iommufd._lock:
            self._live()
            check_device(self, device, "IOMMU_VDEVICE_ALLOC")
            return alloc_vdevice(self, device, number(virtual_id, 64, "virtual_id"))

    def alloc_event_queue(self, event_type: int, depth: int = 64) -> VEventQueue:
        """Make a queue for what the IOMMU reports of the VM's devices (IOMMU_VEVENTQ_ALLOC; since Linux 6.15).

        Args:
            event_type: A `VEventType`, or the number of one that is not known here.
            depth: How many events the kernel keeps until they are read, from 1 to 1 << 19; more are lost, and that is
                told.

        Raises:
            AlreadyMappedError: The vIOMMU has a queue of that type.
            UnsupportedError: It has no events of that type.
            IoctlError: The kernel refused.
            TypeError, ValueError: These are no such numbers.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        return alloc_event_queue(self, event_type, depth)

    def alloc_hw_queue(self, queue_type: int, index: int, iova: int, length: int) -> HWQueue:
        """Give the VM a queue that the hardware reads by itself (IOMMU_HW_QUEUE_ALLOC; since Linux 6.17).

        The memory stays pinned, and cannot be unmapped, until the queue is closed.

        Args:
            queue_type: A `HWQueueType`, or the number of one that is not known here.
            index: Its number. Queues are made in this order, from 0, and closed in the opposite one.
            iova: Where its memory is, in the nesting parent; contiguous in the machine.
            length: Bytes.

        Raises:
            AlreadyMappedError: There is one of that number.
            NotFoundError: Not all of its memory is mapped.
            UnsupportedError: The vIOMMU has no such queues.
            IoctlError: The kernel refused: EFAULT: the memory is not contiguous; EIO: the queue before it is not there;
                EINVAL: there is none of that number, or the memory does not suit.
            TypeError, ValueError: These are no such numbers.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        return alloc_hw_queue(self, queue_type, index, iova, length)

    # Use

    def invalidate(self, entries: Iterable[TypedData]) -> None:
        """Have the IOMMU forget what it keeps for the VM (IOMMU_HWPT_INVALIDATE; since Linux 6.13).

        Args:
            entries: What is to be forgotten, in this order, all of one type, such as `SMMUv3Command`; none: nothing is
                done.

        Raises:
            InvalidationError: The kernel refused an entry; those before it were done.
            TypeError, ValueError: They are no such entries, or not of one type and length.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        invalidate(self, entries)

    def map(self, offset: int, length: int) -> Window:
        """Map registers that the IOMMU gives to the VM (mmap of the iommufd; since Linux 6.17).

        The window is closed with the vIOMMU.

        Args:
            offset: What the driver has told, as in `Tegra241VIntf`: the kernel's name of the place.
            length: Bytes, as told.

        Raises:
            ValueError, TypeError: These are not on page boundaries, or no numbers.
            IoctlError: The kernel refused: ENXIO: there is nothing of that offset and length.
            ClosedError, ForkedError: It is closed, or belongs to the parent process.
        """
        offset, length = whole(offset, "offset"), whole(length, "length")
        if length <= 0 or offset < 0 or offset % mmap.PAGESIZE or length % mmap.PAGESIZE:
            raise ValueError(f"{length:#x} bytes at {offset:#x} are not pages of {mmap.PAGESIZE} bytes")
        if offset + length > 1 << 63:
            raise ValueError(f"{length:#x} bytes at {offset:#x} are out of reach of mmap")
        window = Window(_Registers(self, offset), 0, length)
        # On record before it is mapped: whatever is raised in between, closing the vIOMMU unmaps it.
        with self._iommufd._lock:
            self._live()
            self._windows[window] = None
            try:
                window._map(readable=True, writeable=True)
            except BaseException as error:
                window.close()
                if isinstance(error, IoctlError):
                    raise diagnose.registers_map_error(error.errno or 0, repr(self), offset, length) from None
                raise
        return window

    # Close

    def _living_windows(self) -> list[Window]:
        return [window for reference in self._windows.keyrefs() if (window := reference()) is not None]

    def _mark_forked(self) -> None:
        """This process is a forked child, which does not have what is mapped."""
        for window in self._living_windows():
            window._mark_forked()

    def _destroy(self) -> None:
        # The kernel destroys none whose registers are mapped.
        for window in self._living_windows():
            window.close()
        super()._destroy()

    def _release(self) -> None:
        for window in self._living_windows():
            window.close()
        super()._release()

    def __repr__(self) -> str:
        return f"<VIOMMU {self.id} on {self.parent!r}{' closed' if self.closed else ''}>"


class _Registers:
    """What a window of a vIOMMU is on: see `Mappable`."""

    __slots__ = ("_file_owner", "file_offset", "viommu")

    def __init__(self, viommu: VIOMMU, offset: int) -> None:
        self.viommu = viommu
        self.file_offset = offset
        self._file_owner = viommu.iommufd

    def _why_silent(self) -> str:
        """See `Mappable`."""
        return "the IOMMU has taken the registers away"

    def __repr__(self) -> str:
        return repr(self.viommu)


def alloc_viommu(device: Attachable, parent: HWPT, viommu_type: int, data: bytes) -> VIOMMU:
    """Allocate a vIOMMU; see `Device.alloc_viommu`. The iommufd's lock is held."""
    viommu_type = number(viommu_type, 32, "viommu_type")
    memory = bytearray(memoryview(data))
    if viommu_type == VIOMMUType.TEGRA241_CMDQV and not memory:
        memory = bytearray(_CMDQV.size)
    parent._live()
    if parent.iommufd._context is not device.iommufd._context:
        raise ValueError(f"{parent!r} belongs to another IOMMUFD than {device.name}")
    viommu = VIOMMU(parent.iommufd, parent, device.host, viommu_type)
    uses = {"dev_id": device._c, "hwpt_id": parent._c}
    try:
        viommu._create(partial(ioctls.viommu_alloc, uses=uses, viommu_type=viommu_type, data=memory))
    except IoctlError as error:
        parent._live()  # these raise where one of the two was closed meanwhile
        device._live()
        raise diagnose.viommu_alloc_error(
            error.errno or 0, device.name, repr(parent), viommu_type, _iommu_type(device)
        ) from None
    viommu.data = bytes(memory)
    return viommu


def _iommu_type(device: Attachable) -> int | None:
    try:
        return device.hw_info().type
    except IoctlError:
        return None
