"""I/O address spaces: which memory devices reach, and where."""

from __future__ import annotations

import errno
import operator
from array import array
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import uapi
from ..errors import ClosedError, InUseError, IoctlError
from ..uapi import ioctls
from ..uapi.ioctls import CHAR_ARRAY, FAILED, from_buffer, ioas_map, ioas_unmap, last_errno
from .arguments import BOTH, U64_MAX, access_flags, check_range, hold, unshared
from .iova import IOVARange
from .mapping import PENDING, DMAMapping, DMAMappings
from .mapping_steps import map_below, map_failed, map_pieces, refused, undo
from .mapping_table import MappingTable

if TYPE_CHECKING:
    from .iommufd import IOMMUFD

_new = object.__new__
_FIXED: int = uapi.IOMMU_IOAS_MAP_FIXED_IOVA


class IOAS:
    """An I/O address space (IOMMU_IOAS_ALLOC). Made by `IOMMUFD.alloc_ioas`.

    It owns its mappings. Devices of any number of groups can be attached to it and then share them.

    Thread safety: `map` and `unmap` may be called from any thread, at the same time too.

    Attributes:
        id: Its id within the iommufd. The kernel reuses ids at once after the object is destroyed.
    """

    __slots__ = ("__weakref__", "_closed", "_iommufd", "id", "live_fd", "table")

    def __init__(self, iommufd: IOMMUFD, ioas_id: int, fd: int) -> None:
        self._iommufd = iommufd
        self._closed = False
        # None once it cannot be used any more: map and unmap then have one thing to look at.
        self.live_fd: int | None = fd
        self.table = MappingTable()
        self.id = ioas_id

    def fd(self) -> int:
        """The fd of its iommufd.

        Raises:
            ClosedError, ForkedError: One of the two is closed, or belongs to the parent process.
        """
        if self.live_fd is None:
            self._iommufd.fileno()
            raise ClosedError(f"this {self!r} is closed")
        return self.live_fd

    def mark_forked(self) -> None:
        """This process is a forked child, which must not touch it."""
        self.live_fd = None

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd that it belongs to."""
        return self._iommufd

    @property
    def closed(self) -> bool:
        """Whether it has been closed, or its iommufd has."""
        return self._closed

    @property
    def mappings(self) -> tuple[DMAMapping | DMAMappings, ...]:
        """What this process has mapped here, by address."""
        return self.table.ordered()

    # Map

    def map(
        self,
        buffer: object,
        *,
        iova: int | None = None,
        below: int | None = None,
        readable: bool = True,
        writeable: bool = True,
    ) -> DMAMapping:
        """Let the devices of this address space reach memory (IOMMU_IOAS_MAP).

        The memory is pinned: at once if a device is attached, else by the first attach.

        Args:
            buffer: A `DMABuffer`, or another object with the buffer protocol whose address and length in bytes are
                multiples of the page size: rounding would show the device its neighbours in memory.
            iova: Where devices shall see it, on a page boundary. Left out, the kernel chooses; attach first, as it
                knows what the device cannot reach only then.
            below: Choose the lowest free address from which the last byte stays below this one: the IOMMU does
                not know what a device itself can reach (``1 << 32``, say). Not together with ``iova``.
            readable: Whether devices may read it.
            writeable: Whether devices may write to it. Read-only memory takes False.

        Raises:
            AlreadyMappedError: Some of the addresses are mapped already.
            IoctlError: The kernel refused: addresses that are reserved or out of reach, no memory, a limit on it, no
                room (ENOSPC).
            TypeError: The buffer has no contiguous memory, or the iova is no int.
            ValueError: Address, length or iova is not on page boundaries, the iova is negative or does not fit 64
                bits, the length is 0, the memory is read-only, or neither access is allowed.
            ClosedError, ForkedError: The address space is closed, or belongs to the parent process.
        """
        # The hot path: nothing here that could be done once, or only where something is wrong.
        fd = self.live_fd
        if fd is None:
            fd = self.fd()
        if readable and writeable:
            flags, writeable = BOTH, True
        else:
            flags, writeable = access_flags(readable, writeable), bool(writeable)
        if iova is not None and type(iova) is not int:
            iova = operator.index(iova)  # C would take what has a fraction
        try:
            held = from_buffer(CHAR_ARRAY, buffer, writeable)
        except BufferError as error:
            raise unshared(error, buffer) from None
        if below is not None:
            if iova is not None:
                raise ValueError("iova says where, below lets the address be chosen: not both")
            return map_below(self, held, operator.index(below), flags)
        length = len(held)
        # On record before it is mapped: an exception from a signal in between must not free the memory.
        mapping = _new(DMAMapping)
        mapping._ioas = self
        mapping.iova = PENDING
        mapping.length = length
        try:
            self.table[mapping] = held
            if iova is None:
                got = ioas_map(fd, self.id, flags, held, length, 0)
            else:
                got = ioas_map(fd, self.id, flags | _FIXED, held, length, iova)
            if got != FAILED:
                mapping.iova = got
                return mapping
            code = last_errno()
        except BaseException as error:
            undo(mapping, self)
            if isinstance(error, OverflowError):
                raise ValueError(f"iova {iova} does not fit 64 bits without a sign") from None
            raise
        del self.table[mapping]
        raise map_failed(self, code, held, length, iova)

    def map_many(
        self,
        buffer: object,
        pieces: Iterable[tuple[int, int, int | None]],
        *,
        readable: bool = True,
        writeable: bool = True,
    ) -> DMAMappings:
        """Map many pieces of one buffer as one object, all or none (IOMMU_IOAS_MAP for each).

        Args:
            buffer: As for `map`; here only the pieces have to be on page boundaries.
            pieces: For each the offset in the buffer and the length, in bytes, and its iova; None lets the kernel
                choose.
            readable: Whether devices may read it.
            writeable: Whether devices may write to it.

        Raises:
            AlreadyMappedError, IoctlError, TypeError, ClosedError, ForkedError: As for `map`; nothing stays mapped.
            ValueError: As for `map`, or a piece is not within the buffer, or there is none.
        """
        self.fd()
        flags = access_flags(readable, writeable)
        held = hold(buffer, writeable)
        numbers = array("Q")
        for offset, length, iova in pieces:
            # Not those of NumPy, which overflow.
            offset, length = operator.index(offset), operator.index(length)
            if not 0 <= offset <= len(held) or not 0 < length <= len(held) - offset:
                raise ValueError(f"{length:#x} bytes at {offset:#x} are not within the buffer's {len(held):#x}")
            if iova is not None and not 0 <= operator.index(iova) < U64_MAX:
                raise ValueError(f"iova {iova} does not fit 64 bits without a sign")
            numbers.extend((offset, length, FAILED if iova is None else iova))
        if not numbers:
            raise ValueError("there is no piece to map")
        return map_pieces(self, held, numbers, flags)

    def copy_from(
        self,
        source: IOAS,
        iova: int,
        length: int,
        *,
        dst_iova: int | None = None,
        readable: bool = True,
        writeable: bool = True,
    ) -> DMAMapping:
        """Map here what another address space has mapped (IOMMU_IOAS_COPY): the same memory, pinned once.

        Args:
            source: The other address space, of the same iommufd; or this one, for a second address.
            iova: Where it is mapped there.
            length: Bytes.
            dst_iova: Where devices shall see it here; left out, the kernel chooses.
            readable: Whether devices may read it here.
            writeable: Whether devices may write to it here.

        Raises:
            NotFoundError: Not all of that range is mapped there.
            AccessDeniedError: It is mapped read-only there, and shall be writeable here.
            AlreadyMappedError, IoctlError: As for `map`.
            ValueError: The source belongs to another iommufd, or a number is out of range.
            ClosedError, ForkedError: As for `map`.
        """
        fd = self.fd()
        flags = access_flags(readable, writeable)
        if not isinstance(source, IOAS):
            raise TypeError(f"the source is an IOAS, not a {type(source).__name__}")
        source.fd()  # closed, or of the parent process
        if source.iommufd is not self._iommufd:
            raise ValueError(f"{source!r} belongs to another IOMMUFD than {self!r}")
        iova, length = check_range(iova, length)
        if dst_iova is not None:
            dst_iova, length = check_range(dst_iova, length)
        # The memory has to stay for this mapping too, whatever becomes of those that it is copied from.
        held = source.table.memory_of(iova, length)
        mapping = DMAMapping(self, PENDING, length)
        try:
            self.table[mapping] = held
            mapping.iova = ioctls.ioas_copy(
                fd,
                flags=flags if dst_iova is None else flags | _FIXED,
                dst_ioas_id=self.id,
                src_ioas_id=source.id,
                length=length,
                dst_iova=dst_iova or 0,
                src_iova=iova,
            )
        except IoctlError as error:
            self.table.pop(mapping, None)
            code = error.errno or 0
            if code in (errno.ENOENT, errno.EPERM):
                target = f"{IOVARange(iova, iova + length - 1)} of {source!r}"
                raise ioctls.failure("IOMMU_IOAS_COPY", target, code) from None
            raise refused(self, code, "IOMMU_IOAS_COPY", length, dst_iova) from None
        except BaseException:
            undo(mapping, self)
            raise
        return mapping

    # Unmap

    def unmap(self, iova: int, length: int) -> int:
        """Unmap every mapping within a range (IOMMU_IOAS_UNMAP).

        Args:
            iova: The first address.
            length: Bytes. A range that cuts a mapping in two is refused.

        Returns:
            How many bytes were unmapped.

        Raises:
            NotFoundError: Nothing is mapped there, or the range cuts a mapping in two. Mappings before that one
                may be gone.
            ValueError: The numbers are negative or do not fit 64 bits, or the length is 0.
            ClosedError, ForkedError: As for `map`.
        """
        fd = self.fd()
        iova, length = check_range(iova, length)
        before = tuple(self.table)
        done = self._unmap(fd, before, iova, length)
        if done == FAILED:
            error = ioctls.failure("IOMMU_IOAS_UNMAP", f"{self!r}, {IOVARange(iova, iova + length - 1)}")
            self.table.forget_up_to_cut(before, iova, length)
            raise error
        return done

    def unmap_all(self) -> int:
        """Unmap everything.

        Returns:
            How many bytes were unmapped; 0 where nothing was mapped.

        Raises:
            ClosedError, ForkedError: As for `map`.
        """
        fd = self.fd()
        before = tuple(self.table)
        done = self._unmap(fd, before, 0, U64_MAX)
        if done == FAILED:
            raise ioctls.failure("IOMMU_IOAS_UNMAP", repr(self))
        return done

    def _unmap(self, fd: int, before: tuple[DMAMapping | DMAMappings, ...], iova: int, length: int) -> int:
        done = FAILED
        try:
            done = ioas_unmap(fd, self.id, iova, length)
        finally:
            # Also where a signal handler raised between the kernel's work and its result.
            if done != FAILED or ioctls.ioas_last_unmap(fd, self.id) == iova:
                # The kernel takes the longest range for the whole space, whose last address it does not include.
                self.table.forget(before, iova, length + (length == U64_MAX))
        return done

    # Where mappings can be

    def iova_ranges(self) -> tuple[IOVARange, ...]:
        """Where mappings can be (IOMMU_IOAS_IOVA_RANGES). Every attach and detach may change it.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `map`.
        """
        ranges, _ = ioctls.ioas_iova_ranges(self.fd(), self.id)
        return tuple(IOVARange(start, last) for start, last in ranges)

    @property
    def iova_alignment(self) -> int:
        """What an iova and a length must be multiples of, in bytes. Every attach and detach may change it."""
        return ioctls.ioas_iova_ranges(self.fd(), self.id)[1]

    def allow_iovas(self, ranges: Iterable[IOVARange | tuple[int, int]]) -> None:
        """Keep addresses for mappings (IOMMU_IOAS_ALLOW_IOVAS).

        From then on addresses that the kernel chooses lie within these ranges, and an attach that would narrow
        them is refused. Every call replaces what the last one said; no ranges at all take it back.

        Args:
            ranges: `IOVARange` objects, or pairs of the first and the inclusive last address.

        Raises:
            IoctlError: EADDRINUSE: an attached device cannot reach some of them. EINVAL: they overlap, or one has
                a single byte.
            ValueError: A range ends before it starts, or does not fit 64 bits.
            ClosedError, ForkedError: As for `map`.
        """
        pairs = []
        for one in ranges:
            start, last = map(operator.index, (one.start, one.last) if isinstance(one, IOVARange) else one)
            if not 0 <= start <= last <= U64_MAX:
                raise ValueError(f"{start:#x}..{last:#x} is no range of 64-bit addresses")
            pairs.append((start, last))
        fd = self.fd()
        try:
            ioctls.ioas_allow_iovas(fd, self.id, pairs)
        except IoctlError as error:
            wanted = ", ".join(str(IOVARange(*pair)) for pair in pairs)
            raise ioctls.failure("IOMMU_IOAS_ALLOW_IOVAS", f"{self!r} ({wanted})", error.errno) from None

    @property
    def huge_pages(self) -> bool:
        """Whether contiguous pages are combined in the IOMMU's page table (IOMMU_OPTION_HUGE_PAGES).

        Raises, when set to False:
            IoctlError: EINVAL: something is mapped into a page table already.
        """
        return bool(ioctls.option(self.fd(), uapi.IOMMU_OPTION_HUGE_PAGES, self.id))

    @huge_pages.setter
    def huge_pages(self, on: bool) -> None:
        try:
            ioctls.option(self.fd(), uapi.IOMMU_OPTION_HUGE_PAGES, self.id, int(bool(on)))
        except IoctlError as error:
            raise ioctls.failure("IOMMU_OPTION", f"huge pages of {self!r}", error.errno) from None

    # The end

    def close(self) -> None:
        """Destroy the address space with its mappings (IOMMU_DESTROY). Does nothing the second time.

        In a forked child it does nothing at all: the address space is the parent's.

        Raises:
            InUseError: A device is attached to it; nothing has been destroyed.
            BusyError: Something that this process does not know of uses it.
        """
        if self._closed or self._iommufd.in_child:
            return
        with self._iommufd.lock:
            users = self._iommufd.users_of(self)
            if users:
                names = ", ".join(device.name for device in users)
                raise InUseError(f"{self!r} is in use: {names} attached; detach first", users)
            try:
                ioctls.destroy(self.fd(), self.id)
            except IoctlError as error:
                raise ioctls.failure("IOMMU_DESTROY", repr(self), error.errno) from None
            except BaseException:
                # A signal handler raised, maybe after the kernel had destroyed it. Under the lock nothing of this
                # process has been given the id meanwhile: what is there is still this.
                try:
                    ioctls.destroy(self.fd(), self.id)
                except IoctlError as error:
                    if error.errno == errno.ENOENT:
                        self.mark_closed()
                else:
                    self.mark_closed()
                raise
            self.mark_closed()

    def mark_closed(self) -> None:
        """Let go of all that belonged to it, once the kernel has destroyed it."""
        self._closed = True
        self.live_fd = None
        self.table.clear()
        self._iommufd.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<IOAS {self.id}{' closed' if self._closed else ''}>"
