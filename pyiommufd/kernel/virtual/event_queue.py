"""Event queues: what an IOMMU reports of a VM's devices (IOMMU_VEVENTQ_ALLOC)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.pagetables.nested_data import number
from pyiommufd.kernel.record_queue import RecordQueue
from pyiommufd.kernel.virtual.events import HEADER, VEvent, decode_events, event_size, is_earlier, next_sequence
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.virtual.viommu import VIOMMU

_MOST = 1 << 19  # the deepest queue (Linux 7.3, drivers/iommu/iommufd/eventq.c)
_STEP = 4  # bytes that events of unknown types are taken to be a multiple of


class VEventQueue(RecordQueue[VEvent]):
    """A queue of events of a vIOMMU's devices. Made by `VIOMMU.alloc_event_queue`, and closed with the vIOMMU.

    Where events were lost, as nobody had read and the queue was full, `LostEvents` stands in their place.

    Thread safety: everything here may be used from any thread; an event is read by one of them.

    Attributes:
        viommu: Its vIOMMU.
        type: The kind of its events: a `VEventType`, or the number of one that is not known here.
        depth: How many events the kernel keeps until they are read.
    """

    __slots__ = ("_expected", "depth", "type", "viommu")

    _awaited = "event"

    def __init__(self, viommu: VIOMMU, event_type: int, depth: int) -> None:
        size = event_size(event_type)
        # Room for less than the event is EINVAL: that is how the size of one of an unknown type is found.
        super().__init__(viommu.iommufd, HEADER + (size or 0), 0 if size else _STEP)
        self.viommu = viommu
        self.type = event_type
        self.depth = depth
        self._expected = 0

    @property
    def uses(self) -> tuple[KernelObject, ...]:
        """Its vIOMMU."""
        return (self.viommu,)

    @property
    def _owner(self) -> VIOMMU:
        return self.viommu

    def read(self, timeout: float | None = None) -> VEvent:
        """The next event; other threads run meanwhile. ``await`` and ``async for`` do the same in an event loop.

        Args:
            timeout: Seconds to wait for it; 0: do not wait; None: as long as it takes.

        Raises:
            TimeoutError: None has come.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `fileno`; also when it is closed meanwhile.
        """
        return super().read(timeout)

    def _decode(self, data: bytes) -> Iterable[VEvent]:
        return decode_events(self.type, data, self._expected)

    def _keep(self, records: tuple[VEvent, ...]) -> None:
        # Only onwards: a signal handler may have read the next ones before this one is handed out.
        if records and not is_earlier(records[-1].sequence, self._expected):
            self._expected = next_sequence(records[-1].sequence)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<VEventQueue {self.id}, type {self.type:#x} of {self.viommu!r}{state}>"


def alloc_event_queue(viommu: VIOMMU, event_type: int, depth: int) -> VEventQueue:
    """Allocate an event queue; see `VIOMMU.alloc_event_queue`."""
    event_type, depth = number(event_type, 32, "event_type"), number(depth, 32, "depth")
    if not 1 <= depth <= _MOST:
        raise ValueError(f"depth is a number of events from 1 to {_MOST}, not {depth}")
    queue = VEventQueue(viommu, event_type, depth)
    uses = {"viommu_id": viommu._c}
    file = queue._queue._file
    try:
        queue._create(partial(ioctls.veventq_alloc, uses=uses, queue=file, queue_type=event_type, depth=depth))
    except IoctlError as error:
        viommu._live()  # raises where it was closed meanwhile
        raise ioctl_error(error.request, error.errno or 0, f"{viommu!r}, events of type {event_type:#x}") from None
    return queue
