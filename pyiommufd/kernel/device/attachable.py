"""A bound device as the iommufd sees it: attach, replace and detach of page tables, and whose DMA they change."""

from __future__ import annotations

import errno
import operator
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import (
    AlreadyAttachedError,
    Cause,
    ClosedError,
    DeviceNotFoundError,
    IoctlError,
    UnsupportedError,
    ioctl_error,
)
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import ReservedRegion
from pyiommufd.iterables import pairs
from pyiommufd.kernel.handle import Handle
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.kernel.pagetables.attachment import (
    UNBLOCKED_REASON,
    Attachment,
    AttachPreview,
    ChangeKind,
    DMAChange,
    Verdict,
)
from pyiommufd.kernel.pagetables.trial import try_page_table, unfit_mappings
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from typing import TypeGuard

    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.pagetables.fault_queue import FaultQueue
    from pyiommufd.kernel.pagetables.hw_info import HWInfo
    from pyiommufd.kernel.pagetables.hwpt import HWPT
    from pyiommufd.kernel.pagetables.nested import NestedHWPT
    from pyiommufd.kernel.pagetables.page_table import PageTable
    from pyiommufd.kernel.virtual.viommu import VIOMMU

_ATTACH = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"


class Attachable(Handle):
    """A device as the iommufd sees it: its id, its group's state, and the page tables that it is attached to."""

    __slots__ = ("_before_bind", "_c", "_device", "_fd_shared", "_iommufd", "_pasid_width", "_state", "bind_change")

    bind_change: DMAChange

    def __init__(self, iommufd: IOMMUFD, host: HostDevice) -> None:
        super().__init__()  # its fd comes with the bind
        self._iommufd = iommufd
        self._device = host
        self._fd_shared = False
        self._state = iommufd._context.group(host)
        self._pasid_width: int | None = None
        self._c = ioctls.new_object(iommufd._file)
        self._before_bind = self._state.changes
        self.bind_change = self._bind_change()

    def _bind_change(self) -> DMAChange:
        # The bind of a mediated device blocks nothing: until it is attached, its parent's driver reaches no memory.
        none = self._device.is_mediated or self._state.bound
        return self._no_change() if none else self._change(ChangeKind.FIRST)

    def _check_bind_change(self) -> None:
        """After the bind: make `bind_change` unknown if a signal handler bound or closed others meanwhile."""
        self.bind_change = self._completed_change((self._before_bind, self._iommufd.shared), self.bind_change)

    @property
    def id(self) -> int:
        """Its id within the iommufd; 0 where it is not known: see `Device.from_fd`."""
        return self._c.id

    def fileno(self) -> int:
        """The file descriptor. Whoever has it can attach the device: from now on its iommufd is `IOMMUFD.shared`.

        Raises:
            ClosedError, ForkedError: As for `attach`.
        """
        self._mark_fd_shared()
        return super().fileno()

    def _mark_fd_shared(self) -> None:
        """Note that others may have its fd, and so may attach or detach it."""
        self._fd_shared = True
        self._iommufd._context.shared = True

    def _what(self) -> str:
        return f"{type(self).__name__} {self.name}"

    @property
    def name(self) -> str:
        """The name of the device on its bus."""
        return self._device.name

    @property
    def host(self) -> HostDevice:
        """The device as it was when it was bound."""
        return self._device

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd that it is bound to."""
        return self._iommufd

    # Attach, replace, detach

    def attach(self, page_table: PageTable, pasid: int | None = None) -> DMAChange:
        """Let the device reach what an address space maps (VFIO_DEVICE_ATTACH_IOMMUFD_PT).

        The group's first attach moves *every member* of the IOMMU group to that page table.

        Args:
            page_table: The address space, for which the kernel finds or makes a page table, an `HWPT` or a
                `NestedHWPT`; of the same iommufd. It never finds an `HWPT`: to a group, an address space and an HWPT of
                it are two page tables.
            pasid: Only the DMA with this PASID.

        Returns:
            Whose DMA this has changed.

        Raises:
            AlreadyAttachedError: The device is attached already; `replace` is the way.
            GroupConflictError: A member of the group is attached to another page table; it names them.
            IoctlError: The kernel refused for another reason, such as a mapping that the device cannot reach.
            UnsupportedError: The device can do no DMA with PASIDs (the kernel would accept that, and do nothing).
            ValueError: The page table belongs to another iommufd, or the PASID is out of range.
            TypeError: It is no address space or page table, or the PASID is no int.
            ClosedError, ForkedError: The device or the page table is closed, or belongs to the parent process.
        """
        with self._iommufd._lock:
            pasid = self._check(page_table, pasid)
            if self._state.attached(self, pasid) is not None:
                raise AlreadyAttachedError(
                    f"{self.name} is attached already; replace() takes it, and every attached member of its group, "
                    "to another page table"
                )
            return self._attach(page_table, pasid)

    def replace(self, page_table: PageTable, pasid: int | None = None) -> DMAChange:
        """Move to another page table, and *every attached member of the group* with it.

        When the kernel refuses, the old page table stays. DMA goes by one table or the other, never past both; but
        DMA during the change may be lost, as a fault: quiet the device where nothing may be. It is up to the driver
        of the IOMMU (drivers/iommu, Linux 7.3): those of VT-d and AMD-Vi block a device before they set its new
        table; virtio-iommu's fills a table that no device was on after the change; SMMUv3's avoids a gap where it can.

        Returns:
            Whose DMA this has changed.

        Raises:
            IoctlError, UnsupportedError, ValueError, TypeError, ClosedError, ForkedError: As for `attach`. ValueError
                also where the device is not attached.
        """
        with self._iommufd._lock:
            pasid = self._check(page_table, pasid)
            # What others may have attached is for the kernel to know.
            if self._state.attached(self, pasid) is None and not self._fd_shared:
                raise ValueError(f"{self.name} is not attached: there is nothing to replace; attach() it")
            return self._attach(page_table, pasid)

    def _attach(self, page_table: PageTable, pasid: int | None) -> DMAChange:
        attachment = self._state.attachment(pasid)
        before, certain = self._state_stamp(), self._joins_for_certain(attachment)
        change = self._change(self._kind(page_table, pasid), certain=certain)
        attachment.tables[page_table.id] = page_table
        try:
            self._request_attach(page_table, pasid, attachment)
        except IoctlError as error:
            self._live()  # these raise where one of the two was closed meanwhile
            page_table._live()
            raise self._attach_refused(error.errno or 0, page_table, pasid) from None
        return self._completed_change(before, change)

    def _state_stamp(self) -> tuple[int, bool]:
        """The group's state, to detect a change between a check and a request."""
        return self._state.changes, self._iommufd.shared

    def _completed_change(self, before: tuple[int, bool], change: DMAChange) -> DMAChange:
        """The change of a completed request; unknown if a signal handler changed the group in between."""
        same = self._state_stamp() == before or change.kind is ChangeKind.UNBLOCKED
        self._state.changes += 1
        return change if same else DMAChange(change.kind, _members(self._device), Verdict.UNKNOWN)

    def _request_attach(self, page_table: PageTable, pasid: int | None, attachment: Attachment) -> None:
        ioctls.attach(self._live(), page_table._c, pasid, attachment.group_on, attachment.cell(self))

    def _attach_refused(self, code: int, page_table: PageTable, pasid: int | None) -> IoctlError:
        peers = [(peer.host, repr(peer.page_table_for(pasid))) for peer in self._conflicting_peers(page_table, pasid)]
        if code == errno.EINVAL and not peers and (why := self._not_for_pasids(page_table, pasid)):
            return diagnose.pasids_error(self.name, why)
        if _is_nested(page_table):
            known = any(one._goes_with(self) for one in self._iommufd._context.objects())
            where = "" if known and code == errno.ENOENT else f"it is in {page_table._owner!r}"
            return diagnose.attach_error(code, self._device, repr(page_table), peers, nested=where)
        unfit: list[IOVARange] = []
        reserved: list[str] = []
        if not peers:
            reserved = _reserved_hits(self._device, page_table.ioas)
            unfit = unfit_mappings(self, page_table.ioas, code)
        return diagnose.attach_error(code, self._device, repr(page_table), peers, [*reserved, *map(str, unfit)])

    def detach(self, pasid: int | None = None) -> DMAChange:
        """Leave the page table (VFIO_DEVICE_DETACH_IOMMUFD_PT). Does nothing where the device is not attached.

        Where others have its fd as well, what they have attached is left, too.

        DMA is blocked again when the last attached member of the group leaves. Until then this device, too, reaches
        what the others do.

        Returns:
            Whose DMA this has changed.

        Raises:
            IoctlError: The kernel refused.
            ValueError, TypeError: That is no PASID.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        with self._iommufd._lock:
            self._live()
            pasid = _checked_pasid(pasid)
            if self._state.attached(self, pasid) is None and not self._fd_shared:
                return self._no_change()
            attachment = self._state.attachment(pasid)
            before, certain = self._state_stamp(), self._certain_peers(attachment)
            change = DMAChange(ChangeKind.DETACH, ()) if certain else self._change(ChangeKind.DETACH)
            ioctls.detach(self._live(), pasid, attachment.cell(self))
            return self._completed_change(before, change)

    def preview_attach(self, page_table: PageTable, pasid: int | None = None) -> AttachPreview:
        """What `attach`, or `replace` where the device is attached, would do. Changes nobody's DMA.

        Memory that is mapped is pinned for a moment, to see whether it can be.

        Raises:
            UnsupportedError, ValueError, TypeError, ClosedError, ForkedError: As for `attach`.
        """
        with self._iommufd._lock:
            pasid = self._check(page_table, pasid)
            kind = self._kind(page_table, pasid)
            verdict, reasons = self._predict(page_table, pasid, kind)
            change = self._change(kind, certain=self._joins_for_certain(self._state.attachment(pasid)))
            if change.kind is ChangeKind.UNBLOCKED:
                reasons = (*reasons, UNBLOCKED_REASON)
            return AttachPreview(verdict, change.kind, () if verdict is Verdict.REFUSED else change.devices, reasons)

    def _predict(self, page_table: PageTable, pasid: int | None, kind: ChangeKind) -> tuple[Verdict, tuple[str, ...]]:
        """The predicted outcome of an attach."""
        if peers := self._conflicting_peers(page_table, pasid):
            reasons = [f"{one.name} of the same group is attached to {one.page_table_for(pasid)!r}" for one in peers]
            if not self._iommufd.shared:
                return Verdict.REFUSED, tuple(reasons)
            moved = "this iommufd is shared: others may have moved the group to this page table"
            return Verdict.UNKNOWN, (*reasons, moved)
        if self._device.is_mediated and (pasid is not None or not isinstance(page_table, IOAS)):
            return Verdict.REFUSED, ("no IOMMU is before a mediated device: it has no page tables and no PASIDs",)
        if self._iommufd.shared:
            return Verdict.UNKNOWN, ("this iommufd is shared: what other processes have attached cannot be seen",)
        if kind is ChangeKind.NOOP:
            return Verdict.ACCEPTED, ("it is attached there already",)
        if self._device.is_mediated:
            return Verdict.ACCEPTED, ("its parent's driver pins what is mapped when it needs it",)
        hits = [f"it has mapped {hit}" for hit in _reserved_hits(self._device, page_table.ioas)]
        hits += [f"it has allowed {hit}" for hit in _reserved_allowed(self._device, page_table.ioas)]
        if hits:
            return Verdict.REFUSED, tuple(hits)
        if kind is ChangeKind.JOIN:
            return Verdict.ACCEPTED, ("the group is there already",)
        if why := self._not_for_pasids(page_table, pasid):
            return Verdict.REFUSED, (why,)
        if not isinstance(page_table, IOAS):
            if _is_nested(page_table):
                return Verdict.UNKNOWN, ("the page table is the VM's: only an attach can tell",)
            if page_table.host == self._device:
                return Verdict.ACCEPTED, ("the page table was made for it",)
            return Verdict.UNKNOWN, (f"the page table was made for {page_table.host.name}: only an attach can tell",)
        if not page_table._table:
            return Verdict.ACCEPTED, ()
        code = try_page_table(self, page_table)
        if code in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOENT):
            return Verdict.UNKNOWN, ("this kernel or device cannot check whether the mappings fit",)
        if code:
            unfit = ", ".join(map(str, unfit_mappings(self, page_table, code)))
            why = f"mapped {unfit}" if unfit else "each mapping alone does not"
            return Verdict.REFUSED, (f"a page table for it fails with {errno.errorcode[code]}: {why}",)
        return Verdict.ACCEPTED, ("a trial page table can hold the mappings",)

    def _not_for_pasids(self, page_table: PageTable, pasid: int | None) -> str:
        """Which page table would have to be one for PASIDs, in words; empty: none.

        All of a device that has attachments with PASIDs are (Linux 7.3, iommufd_hwpt_pasid_compat).
        """
        if self._device.without_iommu:
            return ""  # the kernel looks at no PASID
        tables = self.page_tables | {pasid: page_table}
        wrong = [one for one in (tables[pasid], tables.get(None)) if one is not None and not _for_pasids(one)]
        return f"{wrong[0]!r} was made without pasid=True" if wrong and tables.keys() - {None} else ""

    def _check(self, page_table: PageTable, pasid: int | None) -> int | None:
        self._live()
        if not (isinstance(page_table, IOAS) or _is_hwpt(page_table) or _is_nested(page_table)):
            raise TypeError(
                f"a device attaches to an IOAS, an HWPT or a NestedHWPT, not to {type(page_table).__name__}"
            )
        if page_table.closed:
            raise ClosedError(f"{page_table!r} is closed")
        if page_table.iommufd._context is not self._iommufd._context:
            raise ValueError(f"{page_table!r} belongs to another IOMMUFD than {self.name}")
        return self._check_pasid(pasid)

    def _check_pasid(self, pasid: int | None) -> int | None:
        pasid = _checked_pasid(pasid)
        if pasid is None or self._state.attached(self, pasid) is not None:
            return pasid
        if self._pasid_width is None:
            try:
                self._pasid_width = 0 if self._device.without_iommu else self.hw_info().pasid_width
            except IoctlError:
                return pasid  # an mdev, say: the kernel knows better
        if not self._pasid_width:
            # The kernel would accept the attach, and do nothing.
            seen = "no IOMMU covers it" if self._device.without_iommu else "IOMMU_GET_HW_INFO says so"
            cause = Cause("this device can do no DMA with PASIDs here", seen, "attach without one")
            raise UnsupportedError(_ATTACH, errno.EOPNOTSUPP, f"{self.name}, PASID {pasid}", (cause,))
        if pasid >> self._pasid_width:
            raise ValueError(f"PASID {pasid:#x} has more than the {self._pasid_width} bits that {self.name} can use")
        return pasid

    def _kind(self, page_table: PageTable, pasid: int | None) -> ChangeKind:
        attachment = self._state.attachment(pasid)
        attached = attachment.devices
        if not attached:
            return ChangeKind.FIRST
        if not any(map(self._is_same, attached)):
            return ChangeKind.JOIN
        return ChangeKind.NOOP if attachment.page_table is page_table else ChangeKind.REPLACE

    def _is_same(self, other: Attachable) -> bool:
        """Whether it is this device: also as another object has it, which `Device.from_fd` makes."""
        return other._device == self._device

    def _change(self, kind: ChangeKind, *, certain: bool = False) -> DMAChange:
        """The DMA change of an action of this kind, and whether it is known.

        On a shared iommufd other processes may have devices of the group bound, attached or moved; but while another
        member is known to be attached, one that leaves or joins changes nothing.
        """
        if self._device.without_iommu:
            return self._no_change()
        unknown = self._iommufd.shared and not (kind is ChangeKind.JOIN and certain)
        changed = unknown or kind in (ChangeKind.FIRST, ChangeKind.REPLACE, ChangeKind.DETACH)
        return DMAChange(kind, _members(self._device) if changed else (), Verdict.UNKNOWN if unknown else Verdict.KNOWN)

    def _no_change(self) -> DMAChange:
        return DMAChange(ChangeKind.UNBLOCKED if self._device.without_iommu else ChangeKind.NOOP, ())

    def _certain_peers(self, attachment: Attachment) -> list[Attachable]:
        """The other attached devices, without those whose fd others may have."""
        return [peer for peer in attachment.devices if peer is not self and not peer._fd_shared]

    def _joins_for_certain(self, attachment: Attachment) -> bool:
        """Whether an attach of it cannot be the group's first; nor a replace, where others could have attached it."""
        return not self._fd_shared and bool(self._certain_peers(attachment))

    def _conflicting_peers(self, page_table: PageTable, pasid: int | None) -> tuple[Attachable, ...]:
        attachment = self._state.attachment(pasid)
        attached = attachment.devices
        # An attached device replaces its table and moves its peers along, so they are no conflict.
        if not attached or attachment.page_table is page_table or any(map(self._is_same, attached)):
            return ()
        return tuple(attached)

    @property
    def page_table(self) -> PageTable | None:
        """What it is attached to, or None; by this object: others that have its fd may have attached it elsewhere."""
        return self.page_table_for(None)

    def page_table_for(self, pasid: int | None) -> PageTable | None:
        """What it is attached to with a PASID, or None."""
        attachment = self._state.attached(self, pasid)
        return None if attachment is None else attachment.page_table

    @property
    def page_tables(self) -> dict[int | None, PageTable]:
        """What it is attached to, by PASID; without a PASID under None."""
        return {
            pasid: attachment.page_table
            for pasid, attachment in pairs(self._state.attachments)
            if self in attachment.devices
        }

    # IOMMU information and page tables

    def _check_id(self, request: str) -> None:
        if not self.id:
            cause = Cause(
                f"the id of {self.name} in the iommufd is not known",
                "another process has bound it, and the kernel does not tell",
                "have that process pass it on: Device.from_fd(fd, iommufd, id=)",
            )
            raise UnsupportedError(request, errno.EOPNOTSUPP, self.name, (cause,))

    def hw_info(self, data_type: int | None = None) -> HWInfo:
        """Type and capabilities of the device's IOMMU (IOMMU_GET_HW_INFO; since Linux 6.6).

        Args:
            data_type: Ask for data of this type, which the IOMMU has beside its usual one (a `HWInfoType`; since
                Linux 6.17).

        Raises:
            UnsupportedError: The kernel or the IOMMU has no such information; or the device's `id` is not known.
            NotFoundError: No IOMMU stands before the device, as before a mediated one.
            ValueError, TypeError: The type is no number of 32 bits.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.pagetables.hw_info import hw_info

        self._live()
        if data_type is not None and not 0 <= operator.index(data_type) < 1 << 32:
            raise ValueError(f"a data type is a number of 32 bits, not {data_type}")
        self._check_id("IOMMU_GET_HW_INFO")
        try:
            return hw_info(*ioctls.get_hw_info(self._c, data_type))
        except IoctlError as error:
            self._live()  # raises where it was closed meanwhile
            code = error.errno or 0
            causes = diagnose.mediated_info_causes(self._device) if code == errno.ENOENT else ()
            raise ioctl_error("IOMMU_GET_HW_INFO", code, self.name, causes) from None

    def alloc_hwpt(
        self,
        ioas: IOAS,
        *,
        nest_parent: bool = False,
        dirty_tracking: bool = False,
        pasid: bool = False,
        fault_queue: FaultQueue | None = None,
        data_type: int = 0,
        data: bytes = b"",
    ) -> HWPT:
        """Make a page table for this device's IOMMU, over what an address space maps (IOMMU_HWPT_ALLOC; 6.6).

        What is mapped is pinned at once. It changes nobody's DMA: `attach` or `replace` does.

        Args:
            ioas: The address space, of the same iommufd. It owns the page table.
            nest_parent: Page tables of a VM can be nested in it.
            dirty_tracking: It can note which pages devices write to (since Linux 6.7; `HWInfo.capabilities`).
            pasid: It can be attached with a PASID, or beside attachments with PASIDs (since Linux 6.15).
            fault_queue: Where page requests of its devices arrive (since Linux 6.11).
            data_type: ``IOMMU_HWPT_DATA_…``: what ``data`` is.
            data: The IOMMU driver's own data.

        Raises:
            UnsupportedError: The kernel or the IOMMU has no such page tables; or the device's `id` is not known.
            IoctlError: The kernel refused, such as for a mapping that the device cannot reach; it names it.
            TypeError, ValueError: That is no address space of this iommufd, or no data.
            ClosedError, ForkedError: The device or the address space is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.pagetables.hwpt import HWPTOptions, alloc_hwpt

        with self._iommufd._lock:
            self._live()
            if not isinstance(ioas, IOAS):
                raise TypeError(f"a page table is made for an IOAS, not for {type(ioas).__name__}")
            self._check_id("IOMMU_HWPT_ALLOC")
            options = HWPTOptions(nest_parent, dirty_tracking, pasid, fault_queue)
            return alloc_hwpt(self, ioas, options, data_type, data)

    def alloc_viommu(self, parent: HWPT, viommu_type: int, data: bytes = b"") -> VIOMMU:
        """Make a slice of this device's IOMMU for a VM (IOMMU_VIOMMU_ALLOC; since Linux 6.13).

        Args:
            parent: A page table made with ``nest_parent=True`` for this IOMMU: the VM's memory. It owns the vIOMMU.
            viommu_type: A `VIOMMUType`, or the number of one that is not known here.
            data: The driver's own data, which it may write over: `VIOMMU.data`. Those of the Tegra241's CMDQV need not
                be given.

        Raises:
            UnsupportedError: The kernel or the IOMMU has no vIOMMUs of that type; `causes` says what is missing.
            IoctlError: The kernel refused: EINVAL: the parent is no nesting parent, or of another IOMMU, or the data
                are not what its driver takes.
            TypeError, ValueError: That is no page table of this iommufd, no type or no data.
            ClosedError, ForkedError: The device or the page table is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.virtual.viommu import alloc_viommu

        with self._iommufd._lock:
            self._live()
            if not _is_hwpt(parent):
                raise TypeError(f"a vIOMMU is made on an HWPT, not on {type(parent).__name__}")
            self._check_id("IOMMU_VIOMMU_ALLOC")
            return alloc_viommu(self, parent, viommu_type, data)


def _is_hwpt(page_table: object) -> TypeGuard[HWPT]:
    if not isinstance(page_table, KernelObject) or isinstance(page_table, IOAS):
        return False
    from pyiommufd.kernel.pagetables.hwpt import HWPT  # which has been imported where there is one

    return isinstance(page_table, HWPT)


def _is_nested(page_table: object) -> TypeGuard[NestedHWPT]:
    if not isinstance(page_table, KernelObject) or isinstance(page_table, IOAS):
        return False
    from pyiommufd.kernel.pagetables.nested import NestedHWPT  # likewise

    return isinstance(page_table, NestedHWPT)


def _for_pasids(page_table: PageTable) -> bool:
    return not isinstance(page_table, IOAS) and bool(page_table.flags & uapi.IOMMU_HWPT_ALLOC_PASID)


def _checked_pasid(pasid: int | None) -> int | None:
    if pasid is None:
        return None
    pasid = operator.index(pasid)
    if not 0 < pasid < 1 << 20:
        raise ValueError(f"a PASID is a number from 1 to {(1 << 20) - 1:#x}, not {pasid}")
    return pasid


def _members(device: HostDevice) -> tuple[HostDevice, ...]:
    """Every member of a device's IOMMU group as it is now; the device alone where it has none."""
    try:
        group = device.group
    except DeviceNotFoundError:
        group = None
    return (device,) if group is None else group.devices


def _reserved_hits(device: HostDevice, ioas: IOAS) -> list[str]:
    """What is mapped where sysfs says that the device's group must not map, in words.

    An attach checks the same, but for ``direct-relaxable`` regions (Linux 7.3, io_pagetable.c).
    """
    return [
        f"{ioas._table.words(region.start, region.last - region.start + 1)}, in {_words(region)}"
        for region in _reserved(device)
        if ioas._table.overlapping(region.start, region.last - region.start + 1)
    ]


def _reserved_allowed(device: HostDevice, ioas: IOAS) -> list[str]:
    """What `IOAS.allow_iovas` keeps for mappings and an attach would take away, in words."""
    return [
        f"{allowed}, which overlaps {_words(region)}"
        for region in _reserved(device)
        for allowed in ioas._allowed
        if region.start <= allowed.last and allowed.start <= region.last
    ]


def _reserved(device: HostDevice) -> list[ReservedRegion]:
    group = device.group
    return [one for one in (group.reserved_regions if group is not None else ()) if one.type != "direct-relaxable"]


def _words(region: ReservedRegion) -> str:
    return f"the reserved region {region.start:#x}..{region.last:#x} ({region.type})"
