"""I/O address spaces: which memory devices reach, and where."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, cast

from pyiommufd import diagnose, uapi
from pyiommufd.errors import IoctlError, ioctl_error
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.memory.arguments import (
    BOTH,
    U64_MAX,
    SupportsFileno,
    access_flags,
    address_ranges,
    check_bool,
    check_range,
    file_number,
    unshared,
    whole,
)
from pyiommufd.kernel.memory.iova import IOVARange, joined
from pyiommufd.kernel.memory.mapping import BaseMapping, DMAMapping, DMAMappings
from pyiommufd.kernel.memory.mapping_requests import (
    buffer_map_error,
    copy_range,
    map_below,
    map_file,
    map_pieces,
    map_with_progress,
)
from pyiommufd.kernel.memory.mapping_table import MappingTable
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.fast import Mapper

if TYPE_CHECKING:
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.pagetables.hwpt import HWPT


class PhysicalRange(NamedTuple):
    """A contiguous range of the machine's physical memory. Returned by `IOAS.physical_address`.

    Attributes:
        address: The physical address of the first byte.
        length: Bytes.
    """

    address: int
    length: int

    def __repr__(self) -> str:
        return f"<PhysicalRange {self.address:#x}..{self.address + self.length - 1:#x}>"


# Memory that could not be unmapped, of address spaces that are closed: devices may reach it until the process ends.
_kept_for_good: list[MappingTable] = []


class IOAS(KernelObject):
    """An I/O address space (IOMMU_IOAS_ALLOC). Made by `IOMMUFD.alloc_ioas`.

    It owns its mappings and the page tables that were allocated for it (`HWPT`). Devices of any number of groups can
    be attached to it and then share the mappings.

    Thread safety: all of it may be used from any thread, at the same time too.
    """

    __slots__ = ("_allowed", "_kept", "_mapper", "_table")

    def __init__(self, iommufd: IOMMUFD) -> None:
        super().__init__(iommufd)
        self._table = MappingTable()
        self._mapper = Mapper(ioctls.address(self._c), self._c, self, self._table, DMAMapping)
        self._allowed: tuple[IOVARange, ...] = ()  # by the last `allow_iovas` here
        self._kept = False  # whether the kernel still has it after the close here

    @property
    def mappings(self) -> tuple[DMAMapping | DMAMappings, ...]:
        """What this process has mapped here, by address."""
        return cast("tuple[DMAMapping | DMAMappings, ...]", self._table.ordered())

    @property
    def hwpts(self) -> tuple[HWPT, ...]:
        """The page tables that this process has allocated for it (`Device.alloc_hwpt`) and not closed."""
        return tuple(cast("list[HWPT]", self._owned()))

    @property
    def ioas(self) -> IOAS:
        """This address space itself, for code that takes an IOAS or an `HWPT`; see `HWPT.ioas`."""
        return self

    # Address ranges and options

    def iova_ranges(self) -> tuple[IOVARange, ...]:
        """Where mappings can be (IOMMU_IOAS_IOVA_RANGES). Every attach and detach may change it.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `map`.
        """
        ranges, _ = self._call(ioctls.ioas_iova_ranges)
        return tuple(IOVARange(start, last) for start, last in ranges)

    @property
    def iova_alignment(self) -> int:
        """What an iova and a length must be multiples of, in bytes. Every attach and detach may change it.

        Raises:
            IoctlError, ClosedError, ForkedError: As for `iova_ranges`.
        """
        return self._call(ioctls.ioas_iova_ranges)[1]

    def allow_iovas(self, ranges: Iterable[IOVARange | tuple[int, int]]) -> None:
        """Keep addresses for mappings (IOMMU_IOAS_ALLOW_IOVAS).

        From then on addresses that are chosen, by the kernel or with ``below``, lie within these ranges, and an attach
        that would narrow them is refused. An ``iova`` that is given may lie elsewhere, and so may what is mapped
        already. Every call replaces what the last one said; no ranges at all take it back.

        Args:
            ranges: `IOVARange` objects, or pairs of the first and the inclusive last address.

        Raises:
            IoctlError: EADDRINUSE: an attached device cannot reach some of them. EINVAL: they overlap, or one has
                a single byte.
            TypeError: A range is neither.
            ValueError: A range ends before it starts, or does not fit 64 bits.
            ClosedError, ForkedError: As for `map`.
        """
        pairs = address_ranges(ranges)
        try:
            with self._iommufd._lock:
                self._call(ioctls.ioas_allow_iovas, pairs)
                self._allowed = joined(IOVARange(*pair) for pair in pairs)
        except IoctlError as error:
            wanted = ", ".join(str(IOVARange(*pair)) for pair in pairs)
            raise ioctl_error("IOMMU_IOAS_ALLOW_IOVAS", error.errno or 0, f"{self!r} ({wanted})") from None

    @property
    def huge_pages(self) -> bool:
        """Whether contiguous pages are combined in the IOMMU's page table (IOMMU_OPTION_HUGE_PAGES).

        Raises:
            IoctlError: The kernel refused; EINVAL: set to False while something is mapped into a page table.
            TypeError: Set to neither True nor False.
            ClosedError, ForkedError: As for `map`.
        """
        return bool(self._call(ioctls.option, uapi.IOMMU_OPTION_HUGE_PAGES))

    @huge_pages.setter
    def huge_pages(self, on: bool) -> None:
        try:
            self._call(ioctls.option, uapi.IOMMU_OPTION_HUGE_PAGES, int(check_bool(on, "huge_pages")))
        except IoctlError as error:
            code = error.errno or 0
            causes = (diagnose.HUGE_PAGES_IN_USE.general,) if code == errno.EINVAL else ()
            raise ioctl_error("IOMMU_OPTION", code, f"huge pages of {self!r}", causes) from None

    # Map

    def map(
        self,
        buffer: object,
        *,
        iova: int | None = None,
        below: int | None = None,
        readable: bool = True,
        writeable: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> DMAMapping:
        """Let the devices of this address space reach memory (IOMMU_IOAS_MAP).

        The memory is pinned: at once if a device is attached, else by the first attach.

        A signal handler runs once the kernel is done. If it raises, the mapping stays, and is in `mappings`; with
        ``progress`` it is undone.

        Args:
            buffer: A `DMABuffer`, or another object with the buffer protocol whose address and length in bytes are
                multiples of the page size: rounding would show the device its neighbours in memory.
            iova: Where devices shall see it, on a page boundary. Left out, the kernel chooses; attach first, as it
                knows what the device cannot reach only then.
            below: Choose the lowest free address from which the last byte stays below this one: the IOMMU does
                not know what a device itself can reach (``1 << 32``, say). Within what `allow_iovas` of this object
                keeps, if anything. Not together with ``iova``.
            readable: Whether devices may read it.
            writeable: Whether devices may write to it. Read-only memory takes False.
            progress: Map large memory in pieces of at most 1 GiB, cut where its own address is a multiple of 1 GiB, and
                call this after each piece with the bytes that are mapped and those in all. Signal handlers run between
                two pieces, that of Ctrl-C among them. An exception from the callback, also in its last call, or from a
                handler cancels the map: nothing stays mapped. The pieces are one mapping with adjoining addresses;
                `DMAMapping.ranges` lists them. Where another process or thread has mapped something in the way, all
                is unmapped and, without ``iova``, mapped elsewhere: the bytes then begin anew.

        Raises:
            AlreadyMappedError: Some of the addresses are mapped already.
            IoctlError: The kernel refused: addresses that are reserved or out of reach, no memory, a limit on it, no
                room (ENOSPC).
            TypeError: It is no buffer, iova or below is no int, or progress cannot be called, or is a
                coroutine function.
            ValueError: Address, length or iova is not on page boundaries, the iova is negative or does not fit 64
                bits, below is not positive or given with an iova, the length is 0, the memory is closed, read-only or
                not in one piece (a memoryview with steps), or neither access is allowed.
            ClosedError, ForkedError: The address space is closed, or belongs to the parent process.
        """
        # The hot path: nothing here that could be done once, or only where something is wrong.
        flags = BOTH if readable and writeable else access_flags(readable, writeable)
        if progress is not None:
            return map_with_progress(self, buffer, iova, below, flags, progress)
        if below is not None:
            return map_below(self, buffer, iova, below, flags)
        if iova is not None and type(iova) is not int:
            iova = whole(iova, "iova")  # C would not take those of NumPy
        try:
            result = self._mapper.map(buffer, iova, flags)
        except (BufferError, TypeError) as error:
            raise unshared(error, buffer) from None
        if isinstance(result, DMAMapping):
            return result
        raise buffer_map_error(self, result, iova)

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
            AlreadyMappedError, IoctlError, ClosedError, ForkedError: As for `map`; nothing stays mapped.
            TypeError: As for `map`, or a piece is not two ints and an int or None.
            ValueError: As for `map`, or a piece is not within the buffer, or there is none.
        """
        self._live()
        return map_pieces(self, buffer, pieces, readable=readable, writeable=writeable)

    def map_file(
        self,
        file: SupportsFileno | int,
        length: int,
        *,
        start: int = 0,
        iova: int | None = None,
        below: int | None = None,
        readable: bool = True,
        writeable: bool = True,
    ) -> DMAMapping:
        """Let the devices of this address space reach memory by its file (IOMMU_IOAS_MAP_FILE; since Linux 6.13).

        The kernel holds the file, not the memory of this process: the fd may be closed and the memory need not be
        mapped here. It is what `IOMMUFD.change_process` takes.

        Args:
            file: A memfd, a file of tmpfs or hugetlbfs, or a `DMABuf`, which is a device's BAR; or what has such an fd,
                as a `DMABuffer` that was made with ``memfd=True``. The access mode of the fd is not looked at: an fd
                that was opened for reading can be mapped writeable.
            length: Bytes, a multiple of the page size; `DMABuf.size` for all of a dma-buf.
            start: Where in the file it begins, in bytes, on a page boundary.
            iova: As for `map`.
            below: As for `map`.
            readable: Whether devices may read it.
            writeable: Whether devices may write to it.

        Raises:
            UnsupportedError: This kernel cannot map files.
            AlreadyMappedError, IoctlError: As for `map`; also EBADF: it is no open file; EINVAL: a file of another
                kind, or the range is not within the file, which is seen once a device is attached; ENODEV: the dma-buf
                is revoked, as while its device has memory decode off; UnsupportedError: the dma-buf is of no vfio
                device.
            TypeError: It is no file, or a number is no int.
            ValueError: Start, length or iova is not on page boundaries or out of range; the rest as for `map`.
            ClosedError, ForkedError: As for `map`.
        """
        self._live()
        flags = access_flags(readable, writeable)
        return map_file(self, file_number(file), length, start=start, iova=iova, below=below, flags=flags)

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
            TypeError: The source is no IOAS, or a number is no int.
            ValueError: The source belongs to another iommufd, a number is out of range, or neither access is allowed.
            ClosedError, ForkedError: As for `map`.
        """
        self._live()
        flags = access_flags(readable, writeable)
        if not isinstance(source, IOAS):
            raise TypeError(f"the source is an IOAS, not a {type(source).__name__}")
        source._live()  # closed, or of the parent process
        if source.iommufd._context is not self._iommufd._context:
            raise ValueError(f"{source!r} belongs to another IOMMUFD than {self!r}")
        iova, length = check_range(iova, length)
        if dst_iova is not None:
            dst_iova, length = check_range(dst_iova, length)
        return copy_range(self, source, iova, length, dst_iova, flags)

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
            IoctlError: The kernel refused otherwise.
            TypeError: The numbers are no ints.
            ValueError: The numbers are negative or do not fit 64 bits, or the length is 0.
            ClosedError, ForkedError: As for `map`.
        """
        self._live()
        iova, length = check_range(iova, length)
        return self._unmap(iova, length, f"{self!r}, {IOVARange(iova, iova + length - 1)}")

    def unmap_all(self) -> int:
        """Unmap everything.

        Returns:
            How many bytes were unmapped; 0 where nothing was mapped.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `map`.
        """
        self._live()
        try:
            return self._unmap(0, U64_MAX, repr(self))
        finally:
            self._table.forget_left()

    def _unmap(self, iova: int, length: int, target: str) -> int:
        for tries in itertools.count():
            changes, self._c.wanted = self._c.changes, tries
            # The kernel takes length U64_MAX for "everything", though such a range does not include the last address.
            touched, pieces = self._table.pieces(iova, length + (length == U64_MAX))
            try:
                return ioctls.ioas_unmap_range(self._c, iova, length, pieces, changes)
            except IoctlError as error:
                self._live()  # raises where it was closed meanwhile
                if error.errno != errno.EAGAIN:
                    cut = self._table.cut_by(iova, length)
                    raise diagnose.unmap_error(error.errno or 0, target, cut, self._iommufd.shared) from None
            finally:
                self._c.wanted = 0
                self._table.forget_unmapped(touched)
        raise AssertionError("not reached")

    def _not_unmapped(self, mapping: BaseMapping, code: int) -> None:
        """A mapping could not be unmapped: raise why, unless it is gone with the address space."""
        if mapping in self._table:
            self._live()
            raise ioctl_error("IOMMU_IOAS_UNMAP", code, f"{self!r}, {mapping!r}")

    # Physical addresses

    def physical_address(self, iova: int, length: int = 1) -> PhysicalRange:
        """Where in the machine's memory something is mapped (IOMMU_IOAS_NOIOMMU_GET_PA; since Linux 7.3).

        For devices that no IOMMU covers, which have to be given these addresses; one has to be attached.

        Args:
            iova: The address here.
            length: How many bytes from there on are of interest.

        Returns:
            Where the first of them is, and how many follow it contiguously, of those asked for.

        Raises:
            UnsupportedError: This kernel was built without support for devices without an IOMMU; or none is attached,
                or one behind an IOMMU was attached first.
            AccessDeniedError: It takes CAP_SYS_RAWIO.
            NotFoundError: Nothing is mapped there.
            IoctlError: The kernel refused for another reason.
            ValueError, TypeError: The numbers are no range.
            ClosedError, ForkedError: As for `map`.
        """
        self._live()
        iova, length = check_range(iova, length)
        try:
            return PhysicalRange(*self._call(ioctls.ioas_noiommu_get_pa, iova, length))
        except IoctlError as error:
            target = f"{self!r}, {IOVARange(iova, iova + length - 1)}"
            raise ioctl_error("IOMMU_IOAS_NOIOMMU_GET_PA", error.errno or 0, target) from None

    def _revoked(self, iova: int) -> bool:
        """Whether the mapping at an address is of a dma-buf that was revoked; see `DMAMapping.revoked`."""

        def answer(length: int) -> int:
            try:
                self._call(ioctls.ioas_noiommu_get_pa, iova, length)
            except IoctlError as error:
                return error.errno or 0
            return 0

        # It is the first that the kernel looks at in a mapping: EINVAL where it was revoked; else EOPNOTSUPP where an
        # IOMMU is before the device, ENOENT where nothing is mapped (Linux 7.3, drivers/iommu/iommufd/io_pagetable.c,
        # iopt_get_phys). A kernel built without this answers EOPNOTSUPP to anything, others EINVAL to a length of 0.
        code = answer(1)
        if code in (0, errno.EINVAL, errno.ENOENT):
            return code == errno.EINVAL
        if code == errno.EOPNOTSUPP and answer(0) == errno.EINVAL:
            return False
        raise diagnose.revoked_error(code, f"{self!r} at {iova:#x}")

    # Close

    def close(self) -> None:
        """Destroy the address space with its mappings and page tables (IOMMU_DESTROY). Does nothing the second time.

        In a forked child it does nothing at all: the address space is the parent's.

        Raises:
            InUseError: A device is attached to it or to one of its page tables; nothing has been destroyed.
            BusyError: Something that this process does not know of uses it.
        """
        super().close()

    def _destroy(self) -> None:
        self._kept = False  # as said before by a close that was interrupted
        super()._destroy()

    def _finalize(self) -> None:
        if self._iommufd.in_child:
            self._table.clear()
        else:
            self._release()

    def _release(self) -> None:
        # It stays in the kernel if it is borrowed, or used by another's device: its memory is unmapped all the same.
        if self._c.state:
            self._kept = True
        ioctls.abandon(self._c)
        for mapping in list(self._table):
            pieces = mapping._mapped_pieces() if self._kept else []
            if not [piece for piece in pieces if not ioctls.ioas_unmap_left(self._c, piece)]:
                self._table.pop(mapping, None)
        if any(not mapping._gone() for mapping in list(self._table)):
            _kept_for_good.append(self._table)
        super()._release()  # last: after an exception in between it must still be registered
