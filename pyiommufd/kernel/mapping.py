"""Memory in an I/O address space: one piece, or many as one."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..errors import IOMMUFDError
from ..uapi import ioctls
from ..uapi.ioctls import FAILED, ioas_unmap, last_errno

if TYPE_CHECKING:
    from .ioas import IOAS

PIECES_A_CALL = 1024
"""So many pieces are mapped or unmapped by one call at most: a signal is then answered within milliseconds."""


PENDING = -1
"""The iova of a mapping that the kernel is working on."""


class DMAMapping:
    """Memory that the devices of an address space reach. Made by `IOAS.map` and `IOAS.copy_from`.

    A context manager that unmaps. Dropping it does not unmap: a device may be writing there. As long as it is
    mapped, the buffer is kept alive and cannot be closed or resized.

    Thread safety: `unmap` may be called from any thread.

    Attributes:
        iova: Where devices see the memory: their address of its first byte.
        length: Bytes.
    """

    __slots__ = ("__weakref__", "_ioas", "iova", "length")

    # IOAS.map, the hot path, sets these by itself.
    def __init__(self, ioas: IOAS, iova: int, length: int) -> None:
        self._ioas = ioas
        self.iova = iova
        self.length = length

    def unmap(self) -> None:
        """Take the memory away from the devices (IOMMU_IOAS_UNMAP). Does nothing the second time.

        When this returns no device reaches it any more, and the buffer is free.

        Raises:
            IoctlError: The kernel refused; it is still mapped.
            ForkedError: This is a forked child.
        """
        ioas = self._ioas
        held = ioas.table.get(self)
        if held is None:
            return
        fd = ioas.live_fd
        if fd is None:
            fd = ioas.fd()  # raises
        try:
            if ioas.table.pop(self, None) is None:
                return  # another thread was quicker
            done = ioas_unmap(fd, ioas.id, self.iova, self.length)
            if done == self.length:
                return
            code = last_errno()
        except BaseException:
            # A signal handler raised, maybe between the kernel's work and its result.
            if ioctls.ioas_last_unmap(fd, ioas.id) != self.iova:
                ioas.table[self] = held
            raise
        if done != FAILED:
            raise IOMMUFDError(f"the kernel unmapped {done:#x} bytes for {self!r}")
        # ENOENT: a process that shares this iommufd has unmapped it; it is gone, as was wanted.
        if code != errno.ENOENT:
            ioas.table[self] = held
            raise ioctls.failure("IOMMU_IOAS_UNMAP", f"{ioas!r}, {self!r}", code)

    @property
    def mapped(self) -> bool:
        """Whether it is still mapped."""
        return self in self._ioas.table

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where it is: iova and length in bytes of each piece, of which there is one."""
        if self.iova != PENDING:
            yield self.iova, self.length

    def drop(self, iova: int, length: int) -> bool:
        """The kernel has unmapped a range: whether that is all of this."""
        return iova <= self.iova and self.iova + self.length <= iova + length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmap()

    def __repr__(self) -> str:
        state = "" if self.mapped else ", unmapped"
        return f"<DMAMapping {self.iova:#x}..{self.iova + self.length - 1:#x}{state}>"


class DMAMappings:
    """Many pieces of one buffer, mapped and unmapped as one. Made by `IOAS.map_many`.

    A context manager that unmaps; as for `DMAMapping`, dropping it does not.

    Thread safety: `unmap` may be called from any thread.
    """

    __slots__ = ("__weakref__", "_ioas", "_pieces")

    def __init__(self, ioas: IOAS, pieces: array[int]) -> None:
        self._ioas = ioas
        # Offset in the buffer, length and iova of each piece, one after the other, as the C code takes them.
        self._pieces = pieces

    @property
    def iovas(self) -> tuple[int, ...]:
        """Where devices see each piece, in the order in which they were given."""
        return tuple(self._pieces[2::3])

    @property
    def length(self) -> int:
        """Bytes of all pieces together."""
        return sum(self._pieces[1::3])

    def unmap(self) -> None:
        """Take all pieces away from the devices (IOMMU_IOAS_UNMAP for each). Does nothing the second time.

        Raises:
            IoctlError: The kernel refused; the pieces from that one on are still mapped, and are what is left here.
            ForkedError: This is a forked child.
        """
        _unmap_pieces(self)

    def extend(self, pieces: array[int]) -> None:
        """So many more pieces have been mapped."""
        self._pieces.extend(pieces)

    @property
    def mapped(self) -> bool:
        """Whether any of it is still mapped."""
        return self in self._ioas.table

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where it is: iova and length in bytes of each piece."""
        yield from _places(self._pieces)

    def drop(self, iova: int, length: int) -> bool:
        """The kernel has unmapped a range: whether that is all that was left of this."""
        return _drop_pieces(self, iova, length)

    def __len__(self) -> int:
        return len(self._pieces) // 3

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmap()

    def __repr__(self) -> str:
        state = "" if self.mapped else ", unmapped"
        return f"<DMAMappings of {len(self)} pieces, {self.length:#x} bytes{state}>"


class CopiedMapping(DMAMapping):
    """A copy of what several mappings were. To the kernel it is as many, which `IOAS.unmap` may take one by one."""

    __slots__ = ("_pieces",)

    def __init__(self, ioas: IOAS, iova: int, length: int, pieces: array[int]) -> None:
        super().__init__(ioas, iova, length)
        self._pieces = pieces  # as in DMAMappings, without a use for the offset

    def unmap(self) -> None:
        """Take the memory away from the devices. See `DMAMapping.unmap`."""
        _unmap_pieces(self)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where it still is: iova and length in bytes of each piece."""
        yield from _places(self._pieces)

    def drop(self, iova: int, length: int) -> bool:
        """The kernel has unmapped a range: whether that is all that was left of this."""
        return _drop_pieces(self, iova, length)


def _places(pieces: array[int]) -> Iterator[tuple[int, int]]:
    yield from zip(pieces[2::3], pieces[1::3], strict=True)


def _drop_pieces(mapping: DMAMappings | CopiedMapping, iova: int, length: int) -> bool:
    left = array("Q")
    for at in range(0, len(mapping._pieces), 3):
        _, size, start = piece = mapping._pieces[at : at + 3]
        if not (iova <= start and start + size <= iova + length):
            left.extend(piece)
    if len(left) != len(mapping._pieces):
        mapping._pieces = left
    return not left


def _unmap_pieces(mapping: DMAMappings | CopiedMapping) -> None:
    ioas = mapping._ioas
    held = ioas.table.get(mapping)
    if held is None:
        return
    fd = ioas.fd()
    rest = mapping._pieces
    try:
        if ioas.table.pop(mapping, None) is None:
            return  # another thread was quicker
        while rest:
            part = rest[: 3 * PIECES_A_CALL]
            done = 3 * ioctls.ioas_unmap_many(fd, ioas.id, part)
            code = last_errno()
            if done < len(part):
                if code != errno.ENOENT:
                    raise ioctls.failure("IOMMU_IOAS_UNMAP", f"{ioas!r}, {mapping!r}", code)
                done += 3  # gone already, as in DMAMapping.unmap
            rest = rest[done:]
    except BaseException:
        mapping._pieces = rest
        ioas.table[mapping] = held
        raise
