"""Devices of the mock IOMMU."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from pyiommufd.errors import CloseError, IoctlError
from pyiommufd.kernel.device.device import Device
from pyiommufd.kernel.pagetables.attachment import Attachment, ChangeKind, DMAChange
from pyiommufd.testing.mock import commands
from pyiommufd.testing.mock.check import holds
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.ioctls import CHAR_ARRAY, from_buffer

if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.kernel.pagetables.page_table import PageTable
    from pyiommufd.testing.mock.iommufd import MockIOMMUFD


class MockDevice(Device):
    """A device of the mock IOMMU, alone in its IOMMU group. Made by `MockIOMMUFD.mock_device`; attached from the start.

    It is a `Device` in all that concerns the iommufd: `id`, `attach`, `replace`, `detach`, with PASIDs, and what is
    allocated for a device id. It has no registers, no interrupts and no device file: what asks for those raises.
    There is nothing behind it that does DMA; `reaches` says where its DMA would go.

    Thread safety: as for `Device`.

    Attributes:
        stdev_id: The id of the test object that stands for the device; `id` is that of the bound device.
    """

    __slots__ = ("_hwpt_ids", "_mock", "_stdev", "stdev_id")

    def __init__(
        self, iommufd: MockIOMMUFD, host: HostDevice, page_table: PageTable, stdev_id: int, device_id: int, hwpt_id: int
    ) -> None:
        super().__init__(iommufd, host)
        # A Device owns an fd. Here it is a copy of the iommufd's, so that ioctls of a device file fail with ENOTTY.
        ioctls.file_duplicate(self._file, iommufd._live())
        self._mock = iommufd
        self.stdev_id = stdev_id
        # The C code keeps whether it has been destroyed: also where a signal handler raises right after that.
        self._stdev = ioctls.new_object(iommufd._file)
        self._stdev.id, self._stdev.state = stdev_id, ioctls.LIVE
        self._hwpt_ids: dict[int | None, int] = {None: hwpt_id}
        self._c.id, self._c.state = device_id, ioctls.LIVE
        iommufd._remember(self)
        self._record(page_table, None)

    def _record(self, page_table: PageTable, pasid: int | None) -> None:
        """What the C code writes down when a device file attaches."""
        attachment = self._state.attachment(pasid)
        attachment.tables[page_table.id] = page_table
        attachment.group_on[0], attachment.cell(self)[0] = page_table.id, 1

    def hwpt_id(self, pasid: int | None = None) -> int:
        """The id of the page table that it is on. It is worth nothing after the next replace or detach.

        Raises:
            ValueError: It is on none.
        """
        try:
            return self._hwpt_ids[pasid]
        except KeyError:
            raise ValueError(f"{self.name} is not attached") from None

    # Attach and detach by the test command

    def _request_attach(self, page_table: PageTable, pasid: int | None, attachment: Attachment) -> None:
        self.attach_to_id(page_table.id, pasid, replace=self in attachment.devices)
        self._record(page_table, pasid)

    def attach_to_id(self, pt_id: int, pasid: int | None = None, *, replace: bool = False) -> None:
        """Attach to, or replace by, a page table of which only the id is known (PASID_ATTACH, MOCK_DOMAIN_REPLACE …).

        `page_table` does not show it.

        Raises:
            IoctlError: The kernel refused.
        """
        fd = self._iommufd._live().fd
        if not replace:
            hwpt_id = commands.pasid_attach(fd, self.stdev_id, pasid or 0, pt_id)
        elif pasid is None:
            hwpt_id = commands.mock_domain_replace(fd, self.stdev_id, pt_id)
        else:
            hwpt_id = commands.pasid_replace(fd, self.stdev_id, pasid, pt_id)
        self._hwpt_ids[pasid] = hwpt_id

    def detach(self, pasid: int | None = None) -> DMAChange:
        """Leave the page table (PASID_DETACH). See `Device.detach`."""
        with self._iommufd._lock:
            self._live()
            if pasid not in self._hwpt_ids:
                return DMAChange(ChangeKind.NOOP, ())
            change = self._change(ChangeKind.DETACH)
            commands.pasid_detach(self._iommufd._live().fd, self.stdev_id, pasid or 0)
            self._hwpt_ids.pop(pasid, None)  # a signal handler may have closed it
            self._state.attachment(pasid).cell(self)[0] = 0
            return change

    # Mock only

    def reaches(self, memory: object, iova: int) -> bool:
        """Whether its DMA from an iova on goes to exactly this memory (MD_CHECK_MAP).

        Args:
            memory: A buffer; its address and length are multiples of `commands.PAGE_SIZE`.
            iova: Likewise.

        Raises:
            ValueError: One of them is not.
            IoctlError: The kernel could not look.
        """
        held = from_buffer(CHAR_ARRAY, memory, False)
        address, length = ioctls.address(held), len(held)
        if (address | length | iova) % commands.PAGE_SIZE or not length:
            raise ValueError(
                f"address {address:#x}, length {length:#x} and iova {iova:#x} have to be multiples of 2 KiB"
            )
        try:
            return holds(lambda: commands.md_check_map(self._live().fd, self.hwpt_id(), iova, length, address))
        finally:
            ioctls.release(held)

    def on(self, hwpt_id: int | None, pasid: int | None = None) -> bool:
        """Whether its DMA with a PASID is by this page table; None: by none (PASID_CHECK_HWPT).

        Raises:
            NotFoundError: There is no such page table.
        """
        return holds(lambda: commands.pasid_check_hwpt(self._live().fd, self.stdev_id, pasid or 0, hwpt_id or 0))

    def set_dirty(self, iova: int, pages: Iterable[int], *, count: int, page_size: int = mmap.PAGESIZE) -> int:
        """Mark pages of its page table as written to by DMA (DIRTY).

        One mark is for all that an entry of the page table maps: more than a page where contiguous ones are combined;
        `IOAS.huge_pages` off prevents that.

        Args:
            iova: Where they begin.
            pages: The numbers of those that were written to, from 0 on.
            count: How many there are, written to or not.
            page_size: Bytes of a page.

        Returns:
            How many were asked for, whether something is mapped there or not.

        Raises:
            IoctlError: EINVAL: the page table does not track dirty pages, or that has not been switched on.
            ValueError: A page is not among them.
        """
        bitmap = bytearray((count + 63) // 64 * 8)
        for page in pages:
            if not 0 <= page < count:
                raise ValueError(f"page {page} is not among {count}")
            bitmap[page // 8] |= 1 << page % 8
        address = ioctls.address(held := from_buffer(CHAR_ARRAY, bitmap, False))
        marked = commands.dirty(self._live().fd, self.hwpt_id(), iova, count * page_size, page_size, address)
        ioctls.release(held)
        return marked

    def page_fault(self, address: int, *, pasid: int | None = None, group: int = 0, permissions: int = 1) -> None:
        """Ask for a page, as a device with page requests does (TRIGGER_IOPF).

        A page table that was allocated with a fault queue passes it on there; otherwise it comes to nothing.

        Args:
            address: What it wanted to access.
            pasid: The PASID of the request.
            group: The number of its group of requests, of 9 bits; the answer names it.
            permissions: The sum of IOMMU_PGFAULT_PERM_READ, WRITE and so on.
        """
        commands.trigger_iopf(self._live().fd, self.id, pasid or 0, group, permissions, address)

    def virtual_event(self) -> None:
        """Have its virtual IOMMU report an event about it (TRIGGER_VEVENT).

        Raises:
            NotFoundError: It is not attached to a nested page table of a virtual IOMMU, or has no virtual id there.
        """
        commands.trigger_vevent(self._live().fd, self.id)

    def cache_holds(self, entry: int, value: int) -> bool:
        """Whether an entry of its translation cache has a value (DEV_CHECK_CACHE); 0 once it was invalidated."""
        return holds(lambda: commands.dev_check_cache(self._live().fd, self.id, entry, value))

    # Close

    def close(self) -> None:
        """Detach, unbind, and take the device out of the machine. Does nothing the second time.

        Raises:
            CloseError: The kernel refused, as for a virtual device that another process has made for it: it goes with
                the iommufd then.
        """
        if self.closed:
            return
        errors: list[BaseException] = []
        if not self.in_child:
            with self._iommufd._lock:
                errors += self._close_virtual()
                # Its PASIDs are not detached with it, and would keep what it was attached to.
                pasids = [pasid for pasid in self._hwpt_ids if pasid is not None]
                steps: list[Callable[[], object]] = [partial(self.detach, pasid) for pasid in pasids]
                steps.append(partial(ioctls.destroy, self._stdev))
                for step in steps:
                    try:
                        step()
                    except IoctlError as error:
                        errors.append(error)
        super().close()
        if errors:
            raise CloseError(f"{self.name} was closed with errors:", tuple(errors))

    def __repr__(self) -> str:
        return f"<MockDevice {self.id} {self.name}{' closed' if self.closed else ''}>"
