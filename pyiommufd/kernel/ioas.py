"""I/O address spaces: which memory devices reach, and where."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import uapi
from ..diagnose.mapping import map_error
from ..errors import ClosedError, InUseError, IoctlError, IOMMUFDError, NotFoundError
from ..uapi import ioctls
from ..uapi.ioctls import FAILED, View, ioas_map, ioas_unmap, last_errno, view
from .mapping import DMAMapping

if TYPE_CHECKING:
    from .iommufd import IOMMUFD

_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
_READABLE: int = uapi.IOMMU_IOAS_MAP_READABLE
_WRITEABLE: int = uapi.IOMMU_IOAS_MAP_WRITEABLE
_FIXED: int = uapi.IOMMU_IOAS_MAP_FIXED_IOVA


@dataclass(frozen=True, slots=True)
class IOVARange:
    """A range of I/O virtual addresses.

    Attributes:
        start: The first address.
        last: The last address, inclusive.
    """

    start: int
    last: int

    def __contains__(self, iova: int) -> bool:
        return self.start <= iova <= self.last

    def __str__(self) -> str:
        return f"{self.start:#x}..{self.last:#x}"


class IOAS:
    """An I/O address space (IOMMU_IOAS_ALLOC). Made by `IOMMUFD.alloc_ioas`.

    It owns its mappings. Devices of any number of groups can be attached to it and then share them.

    Thread safety: `map` and `unmap` may be called from any thread, at the same time too.

    Attributes:
        id: Its id within the iommufd. The kernel reuses ids at once after the object is destroyed.
    """

    __slots__ = ("__weakref__", "_closed", "_iommufd", "_mappings", "id")

    def __init__(self, iommufd: IOMMUFD, ioas_id: int) -> None:
        self._iommufd = iommufd
        self._closed = False
        # Each mapping and the memory that it holds. By mapping and not by iova: taking one out is then a single
        # step that says whether it was still there, also where its iova has another mapping by now.
        self._mappings: dict[DMAMapping, View] = {}
        self.id = ioas_id

    def _fd(self) -> int:
        fd = self._iommufd.fileno()
        if self._closed:
            raise ClosedError(f"this {self!r} is closed")
        return fd

    @property
    def iommufd(self) -> IOMMUFD:
        """The iommufd that it belongs to."""
        return self._iommufd

    @property
    def closed(self) -> bool:
        """Whether it has been closed, or its iommufd has."""
        return self._closed

    @property
    def mappings(self) -> tuple[DMAMapping, ...]:
        """What this process has mapped here, by address."""
        return tuple(sorted(self._mappings, key=lambda mapping: mapping.iova))

    def map(
        self, buffer: object, *, iova: int | None = None, readable: bool = True, writeable: bool = True
    ) -> DMAMapping:
        """Let the devices of this address space reach memory (IOMMU_IOAS_MAP).

        The memory is pinned: at once if a device is attached, else by the first attach.

        Args:
            buffer: A `DMABuffer`, or another object with the buffer protocol whose address and length in bytes are
                multiples of the page size: rounding would show the device its neighbours in memory.
            iova: Where devices shall see it, on a page boundary. Left out, the kernel chooses; attach first, as it
                knows what the device cannot reach only then.
            readable: Whether devices may read it.
            writeable: Whether devices may write to it. Read-only memory takes False.

        Raises:
            AlreadyMappedError: Some of the addresses are mapped already.
            IoctlError: The kernel refused: addresses that are reserved or out of reach, no memory, a limit on it.
            TypeError: The buffer has no contiguous memory, or the iova is no int.
            ValueError: Address, length or iova is not on page boundaries, the iova is negative or does not fit 64
                bits, the length is 0, the memory is read-only, or neither access is allowed.
            ClosedError, ForkedError: The address space is closed, or belongs to the parent process.
        """
        fd = self._fd()
        flags = (_READABLE if readable else 0) | (_WRITEABLE if writeable else 0)
        if not flags:
            raise ValueError("a mapping is readable or writeable for the device, or both")
        try:
            held = view(buffer, writeable)
        except BufferError:
            raise ValueError("this memory is read-only: map it with writeable=False") from None
        length = len(held)
        try:
            if iova is None:
                got = ioas_map(fd, self.id, flags, held, length, 0)
            else:
                got = ioas_map(fd, self.id, flags | _FIXED, held, length, iova)
        except OverflowError:
            raise ValueError(f"iova {iova} does not fit 64 bits without a sign") from None
        if got == FAILED:
            raise self._map_failed(last_errno(), held, iova)
        mapping = DMAMapping(self, got, length)
        self._mappings[mapping] = held
        return mapping

    def _map_failed(self, code: int, held: View, iova: int | None) -> Exception:
        length = len(held)
        if code == 0:
            return _misaligned(ioctls.address(held), length, iova)
        ranges = self._ranges_in_words()
        neighbours = ""
        if iova is not None:
            taken = [m for m in self.mappings if m.iova < iova + length and iova < m.iova + m.length]
            neighbours = ", ".join(str(IOVARange(m.iova, m.iova + m.length - 1)) for m in taken)
        return map_error(code, "IOMMU_IOAS_MAP", repr(self), length, iova, ranges, neighbours=neighbours)

    def _ranges_in_words(self) -> str:
        try:
            return ", ".join(map(str, self.iova_ranges())) or "no addresses at all"
        except IOMMUFDError as error:
            return f"ranges that cannot be read ({error})"

    def unmap_mapping(self, mapping: DMAMapping) -> None:
        """What `DMAMapping.unmap` does."""
        held = self._mappings.pop(mapping, None)
        if held is None:
            return
        try:
            done = ioas_unmap(self._fd(), self.id, mapping.iova, mapping.length)
        except ClosedError:
            self._mappings[mapping] = held
            raise
        if done == FAILED:
            error = ioctls.failure("IOMMU_IOAS_UNMAP", f"{self!r}, {mapping!r}")
            # ENOENT: another process unmapped it through a shared iommufd; it is gone, as was wanted.
            if not isinstance(error, NotFoundError):
                self._mappings[mapping] = held
                raise error
        elif done != mapping.length:
            raise IOMMUFDError(f"the kernel unmapped {done:#x} bytes for {mapping!r}")

    def holds(self, mapping: DMAMapping) -> bool:
        """Whether that mapping is still there."""
        return mapping in self._mappings

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
        fd = self._fd()
        if not 0 <= iova <= _U64_MAX or not 0 < length <= _U64_MAX:
            raise ValueError(f"iova {iova} and length {length} are no range of 64-bit addresses")
        done = ioas_unmap(fd, self.id, iova, length)
        if done == FAILED:
            error = ioctls.failure("IOMMU_IOAS_UNMAP", f"{self!r}, {iova:#x}..{iova + length - 1:#x}")
            # The kernel goes upwards and stops at the first mapping that the range cuts (io_pagetable.c, 7.3).
            cut = [m for m in self.mappings if m.iova < iova + length < m.iova + m.length]
            if cut and not any(m.iova < iova < m.iova + m.length for m in self.mappings):
                self._forget(iova, cut[0].iova - iova)
            raise error
        self._forget(iova, length)
        return done

    def unmap_all(self) -> int:
        """Unmap everything.

        Returns:
            How many bytes were unmapped; 0 where nothing was mapped.

        Raises:
            ClosedError, ForkedError: As for `map`.
        """
        done = ioas_unmap(self._fd(), self.id, 0, _U64_MAX)
        if done == FAILED:
            raise ioctls.failure("IOMMU_IOAS_UNMAP", repr(self))
        self._mappings.clear()
        return done

    def _forget(self, iova: int, length: int) -> None:
        """Drop the records of mappings within a range that the kernel has unmapped."""
        for mapping in self.mappings:
            if iova <= mapping.iova and mapping.iova + mapping.length <= iova + length:
                self._mappings.pop(mapping, None)

    def iova_ranges(self) -> tuple[IOVARange, ...]:
        """Where mappings can be (IOMMU_IOAS_IOVA_RANGES). Every attach and detach may change it.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `map`.
        """
        ranges, _ = ioctls.ioas_iova_ranges(self._fd(), self.id)
        return tuple(IOVARange(start, last) for start, last in ranges)

    @property
    def iova_alignment(self) -> int:
        """What an iova and a length must be multiples of, in bytes. Every attach and detach may change it."""
        return ioctls.ioas_iova_ranges(self._fd(), self.id)[1]

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
                ioctls.destroy(self._fd(), self.id)
            except IoctlError as error:
                raise ioctls.failure("IOMMU_DESTROY", repr(self), error.errno) from None
            self.mark_closed()

    def mark_closed(self) -> None:
        """Let go of all that belonged to it, once the kernel has destroyed it."""
        self._closed = True
        self._mappings.clear()
        self._iommufd.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<IOAS {self.id}{' closed' if self._closed else ''}>"


def _misaligned(address: int, length: int, iova: int | None) -> ValueError:
    page = mmap.PAGESIZE
    if not length:
        return ValueError("there is nothing to map: the buffer has 0 bytes")
    if address % page or length % page:
        return ValueError(
            f"the buffer (address {address:#x}, length {length:#x}) does not begin and end on page boundaries of "
            f"{page} bytes; devices would see what lies beside it. Use a DMABuffer, or a page-aligned part of one"
        )
    return ValueError(f"iova {iova:#x} is not on a page boundary of {page} bytes")
