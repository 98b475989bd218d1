"""A device bound to an iommufd."""

from __future__ import annotations

import contextlib
import errno
import operator
from typing import TYPE_CHECKING

from ..diagnose.attach import attach_error
from ..errors import AlreadyAttachedError, ClosedError, CloseError, IoctlError
from ..host.devices import HostDevice
from ..uapi import ioctls
from .attachment import AttachPreview, ChangeKind, DMAChange, GroupState, Verdict
from .ioas import IOAS
from .iova import IOVARange
from .trial import try_page_table, unfit_mappings
from .vfio_device import VFIODevice

if TYPE_CHECKING:
    from .device_file import DeviceFile
    from .iommufd import IOMMUFD


class Device(VFIODevice):
    """A device bound to an iommufd. Made by `IOMMUFD.bind`; bound until it is closed.

    While it is bound and no member of its group is attached, no member can do DMA.

    Thread safety: everything here may be used from any thread.

    Attributes:
        id: Its id within the iommufd.
        bind_change: Whose DMA the bind has changed: blocked it, for all members of the group, if it was the
            group's first.
    """

    __slots__ = ("_iommufd", "_state", "bind_change", "id")

    def __init__(
        self,
        iommufd: IOMMUFD,
        device: HostDevice,
        device_id: int,
        state: GroupState,
        change: DMAChange,
    ) -> None:
        super().__init__(device)
        self._iommufd = iommufd
        self._state = state
        self.bind_change = change
        self.id = device_id

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd that it is bound to."""
        return self._iommufd

    def take_fd(self, file: DeviceFile) -> None:
        """Own the fd of a file that has been bound. One step: no signal handler can run between the two."""
        self._fd, file._fd = file._fd, None

    # Attach, replace, detach

    def attach(self, page_table: IOAS, pasid: int | None = None) -> DMAChange:
        """Let the device reach what an address space maps (VFIO_DEVICE_ATTACH_IOMMUFD_PT).

        The group's first attach moves *every member* of the IOMMU group to that page table.

        Args:
            page_table: The address space, of the same iommufd.
            pasid: Only the DMA with this PASID.

        Returns:
            Whose DMA this has changed.

        Raises:
            AlreadyAttachedError: The device is attached already; `replace` is the way.
            GroupConflictError: A member of the group is attached to another page table; it names them.
            IoctlError: The kernel refused for another reason, such as a mapping that the device cannot reach.
            ValueError: The page table belongs to another iommufd, or the PASID is out of range.
            ClosedError, ForkedError: The device or the page table is closed, or belongs to the parent process.
        """
        with self._iommufd.lock:
            pasid = self._check(page_table, pasid)
            if self._state.attachment_of(self, pasid) is not None:
                raise AlreadyAttachedError(
                    f"{self.name} is attached already; replace() takes it, and every attached member of its group, "
                    "to another page table"
                )
            return self._attach(page_table, pasid)

    def replace(self, page_table: IOAS, pasid: int | None = None) -> DMAChange:
        """Move to another page table without a gap, and *every attached member of the group* with it.

        When the kernel refuses, the old page table stays.

        Returns:
            Whose DMA this has changed.

        Raises:
            IoctlError, ValueError, ClosedError, ForkedError: As for `attach`. ValueError also where the device is
                not attached.
        """
        with self._iommufd.lock:
            pasid = self._check(page_table, pasid)
            if self._state.attachment_of(self, pasid) is None:
                raise ValueError(f"{self.name} is not attached: there is nothing to replace; attach() it")
            return self._attach(page_table, pasid)

    def _attach(self, page_table: IOAS, pasid: int | None) -> DMAChange:
        kind = self._kind(page_table, pasid)
        try:
            ioctls.attach(self.fileno(), page_table.id, pasid)
        except IoctlError as error:
            raise self._attach_refused(error.errno or 0, page_table, pasid) from None
        except BaseException:
            # A signal handler raised, maybe after the kernel had attached: back to what is on record.
            old = self._state.attachment_of(self, pasid)
            if old is None:
                ioctls.detach(self.fileno(), pasid)
            else:
                ioctls.attach(self.fileno(), old.page_table.id, pasid)
            raise
        self._state.add(self, page_table, pasid)
        return DMAChange(kind, self._changed(kind))

    def _attach_refused(self, code: int, page_table: IOAS, pasid: int | None) -> IoctlError:
        peers = [(peer.host, repr(peer.page_table_for(pasid))) for peer in self._conflicting_peers(page_table, pasid)]
        unfit: list[IOVARange] = []
        reserved: list[str] = []
        if not peers:
            reserved = self._iommufd.reserved_hits(self._device, page_table)
            with contextlib.suppress(IoctlError):  # what could not be tried is not named
                unfit = unfit_mappings(self._iommufd.fileno(), self.id, page_table, code)
        return attach_error(code, self._device, repr(page_table), peers, [*reserved, *map(str, unfit)])

    def detach(self, pasid: int | None = None) -> DMAChange:
        """Leave the page table (VFIO_DEVICE_DETACH_IOMMUFD_PT). Does nothing where the device is not attached.

        DMA is blocked again when the last attached member of the group leaves. Until then this device, too, reaches
        what the others do.

        Returns:
            Whose DMA this has changed.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        with self._iommufd.lock:
            fd = self.fileno()
            pasid = _checked_pasid(pasid)
            if self._state.attachment_of(self, pasid) is None:
                return DMAChange(ChangeKind.NOOP, ())
            ioctls.detach(fd, pasid)
            last = self._state.remove(self, pasid)
            return DMAChange(ChangeKind.DETACH, self._iommufd.members(self._device) if last else ())

    def preview_attach(self, page_table: IOAS, pasid: int | None = None) -> AttachPreview:
        """What `attach`, or `replace` where the device is attached, would do. Changes nobody's DMA.

        Memory that is mapped is pinned for a moment, to see whether it can be.

        Raises:
            ValueError, ClosedError, ForkedError: As for `attach`.
        """
        with self._iommufd.lock:
            pasid = self._check(page_table, pasid)
            kind = self._kind(page_table, pasid)
            peers = self._conflicting_peers(page_table, pasid)
            if peers:
                reasons = tuple(
                    f"{peer.name} of the same group is attached to {peer.page_table_for(pasid)!r}" for peer in peers
                )
                return AttachPreview(Verdict.REFUSED, kind, (), reasons)
            verdict, reasons = self._foresee(page_table, kind)
            return AttachPreview(verdict, kind, () if verdict is Verdict.REFUSED else self._changed(kind), reasons)

    def _foresee(self, page_table: IOAS, kind: ChangeKind) -> tuple[Verdict, tuple[str, ...]]:
        """What is known of an attach that no peer of this process stands in the way of."""
        if kind is ChangeKind.NOOP:
            return Verdict.ACCEPTED, ("it is attached there already",)
        if self._iommufd.shared:
            return Verdict.UNKNOWN, ("this iommufd is shared: what other processes have attached cannot be seen",)
        if kind is ChangeKind.JOIN:
            return Verdict.ACCEPTED, ("the group is there already",)
        hits = self._iommufd.reserved_hits(self._device, page_table)
        if hits:
            return Verdict.REFUSED, tuple(f"it has mapped {hit}" for hit in hits)
        if not page_table.table:
            return Verdict.ACCEPTED, ()
        code = try_page_table(self._iommufd.fileno(), self.id, page_table)
        if code in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOENT):
            return Verdict.UNKNOWN, ("this kernel or device has no way to try whether what is mapped fits",)
        if code:
            unfit = ", ".join(map(str, unfit_mappings(self._iommufd.fileno(), self.id, page_table, code)))
            return Verdict.REFUSED, (f"a page table for it fails with {errno.errorcode[code]}: mapped {unfit}",)
        return Verdict.ACCEPTED, ("a page table made on trial holds what is mapped",)

    def _check(self, page_table: IOAS, pasid: int | None) -> int | None:
        self.fileno()
        if not isinstance(page_table, IOAS):
            raise TypeError(f"a device attaches to an IOAS, not to {type(page_table).__name__}")
        if page_table.closed:
            raise ClosedError(f"{page_table!r} is closed")
        if page_table.iommufd is not self._iommufd:
            raise ValueError(f"{page_table!r} belongs to another IOMMUFD than {self.name}")
        return _checked_pasid(pasid)

    def _kind(self, page_table: IOAS, pasid: int | None) -> ChangeKind:
        attachment = self._state.attachments.get(pasid)
        if attachment is None:
            return ChangeKind.FIRST
        if self not in attachment.devices:
            return ChangeKind.JOIN
        return ChangeKind.NOOP if attachment.page_table is page_table else ChangeKind.REPLACE

    def _changed(self, kind: ChangeKind) -> tuple[HostDevice, ...]:
        return self._iommufd.members(self._device) if kind in (ChangeKind.FIRST, ChangeKind.REPLACE) else ()

    def _conflicting_peers(self, page_table: IOAS, pasid: int | None) -> tuple[Device, ...]:
        attachment = self._state.attachments.get(pasid)
        # An attached device replaces, and takes its peers along: they are in nobody's way.
        if attachment is None or attachment.page_table is page_table or self in attachment.devices:
            return ()
        return tuple(attachment.devices)

    @property
    def page_table(self) -> IOAS | None:
        """What it is attached to, or None."""
        return self.page_table_for(None)

    def page_table_for(self, pasid: int | None) -> IOAS | None:
        """What it is attached to with a PASID, or None."""
        attachment = self._state.attachment_of(self, pasid)
        return None if attachment is None else attachment.page_table

    @property
    def page_tables(self) -> dict[int | None, IOAS]:
        """What it is attached to, by PASID; without a PASID under None."""
        return {
            pasid: attachment.page_table
            for pasid, attachment in self._state.attachments.items()
            if self in attachment.devices
        }

    # The end

    def close(self) -> None:
        """Unbind: close the windows, the eventfds and the cdev, which detaches. Does nothing the second time.

        When the last bound device of the group is closed, the kernel's DMA API owns the group again and host
        drivers can take its members. In a forked child only the child's copy of the fd is closed.

        Raises:
            CloseError: Something could not be released; the rest has been.
        """
        if self.closed:
            return
        if self.in_child:
            self.close_children()
            self._close_fd()
            return
        errors: list[BaseException] = []
        with self._iommufd.lock:
            errors += self.close_children()
            try:
                self._close_fd()
            except OSError as error:
                errors.append(error)
            finally:
                # Also where a signal handler raised: the fd is gone either way.
                for pasid in list(self._state.attachments):
                    self._state.remove(self, pasid)
                self._iommufd.forget(self)
        if errors:
            raise CloseError(f"{self.name} was closed with errors:", tuple(errors))

    def __repr__(self) -> str:
        return f"<Device {self.id} {self._device.name}{' closed' if self.closed else ''}>"


def _checked_pasid(pasid: int | None) -> int | None:
    if pasid is None:
        return None
    pasid = operator.index(pasid)
    if not 0 < pasid < 1 << 20:
        raise ValueError(f"a PASID is a number from 1 to {(1 << 20) - 1:#x}, not {pasid}")
    return pasid
