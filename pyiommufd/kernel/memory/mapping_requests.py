"""The requests behind `IOAS.map`, `map_many`, `map_file` and `copy_from`, and how they are rolled back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import operator
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyiommufd import uapi
from pyiommufd.diagnose.mapping import map_error, map_file_error
from pyiommufd.diagnose.mapping_rows import HOLE
from pyiommufd.errors import IoctlError, IOMMUFDError, ioctl_error
from pyiommufd.iterables import iterate
from pyiommufd.kernel.memory.arguments import U64_MAX, misaligned, whole
from pyiommufd.kernel.memory.iova import IOVARange, first_fit
from pyiommufd.kernel.memory.mapping import PIECES_A_CALL, BaseMapping, CopiedMapping, DMAMapping, DMAMappings
from pyiommufd.kernel.memory.mapping_table import OF_DMA_BUF, OF_FILE
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.ioctls import ANYWHERE, NOT_ON_PAGES, PIECE, View, ioas_map, ioas_map_file

if TYPE_CHECKING:
    from pyiommufd.kernel.memory.ioas import IOAS

_FIXED: int = uapi.IOMMU_IOAS_MAP_FIXED_IOVA


@dataclass(eq=False)
class _MapRequest(ABC):
    """A request that maps one piece of memory.

    Attributes:
        mapping: What it makes.
        held: What keeps the memory alive.
        length: Bytes.
        flags: Of the ioctl, without IOMMU_IOAS_MAP_FIXED_IOVA.
    """

    mapping: DMAMapping
    held: object
    length: int
    flags: int

    @abstractmethod
    def issue(self, flags: int, iova: int) -> int:
        """Issue the request. Returns 0, a negative errno, or NOT_ON_PAGES."""

    @abstractmethod
    def error(self, code: int, iova: int | None, below: int | None = None) -> Exception:
        """The exception for a result of `map_at`, or for want of room below an address."""

    def map_at(self, iova: int | None) -> int:
        """Map at this address; None: the kernel chooses. Returns 0, the errno, or -NOT_ON_PAGES.

        Recorded before the request; if an exception is raised, nothing stays mapped.
        """
        mapping, table = self.mapping, self.mapping._ioas._table
        flags, place = (self.flags, 0) if iova is None else (self.flags | _FIXED, iova)
        try:
            table[mapping] = self.held
            if not (result := self.issue(flags, place)):
                return 0
        except BaseException:
            mapping.unmap()  # a signal handler raised, maybe after the kernel had mapped it
            raise
        table.pop(mapping, None)  # unless the address space was closed meanwhile
        return -result

    def map_below(self, below: int) -> None:
        """Map at the lowest free address such that the last byte is below ``below``."""
        if below <= 0:
            raise ValueError(f"below has to be positive, not {below}")
        ioas = self.mapping._ioas
        reachable, alignment = ioas._call(ioctls.ioas_iova_ranges)
        # What is allowed is reachable: the kernel refuses to allow anything else, and an attach that would change it.
        ranges = ioas._allowed or [IOVARange(*one) for one in reachable]
        alignment = max(alignment, mmap.PAGESIZE)
        taken = ioas._table.places()
        while True:
            iova = first_fit(ranges, taken, self.length, below, alignment)
            if iova is None:
                raise self.error(errno.ENOSPC, None, below)
            if not (code := self.map_at(iova)):
                return
            if code != errno.EEXIST:
                raise self.error(code, iova, below)
            # Another thread was quicker, or a process that shares this iommufd has something there.
            taken.append((iova, alignment))


class _MapBuffer(_MapRequest):
    """IOMMU_IOAS_MAP."""

    held: View

    def issue(self, flags: int, iova: int) -> int:
        return ioas_map(self.mapping._ioas._c, self.mapping._piece, flags, self.held, self.length, iova)

    def error(self, code: int, iova: int | None, below: int | None = None) -> Exception:
        return buffer_map_error(self.mapping._ioas, code, self.held, self.length, iova, below=below)


@dataclass(eq=False)
class _MapFile(_MapRequest):
    """IOMMU_IOAS_MAP_FILE."""

    file: int
    start: int

    def issue(self, flags: int, iova: int) -> int:
        ioas, piece = self.mapping._ioas, self.mapping._piece
        return ioas_map_file(ioas._c, piece, flags, self.file, self.start, self.length, iova)

    def error(self, code: int, iova: int | None, below: int | None = None) -> Exception:
        error = refusal_error(self.mapping._ioas, code, "IOMMU_IOAS_MAP_FILE", self.length, iova, below)
        return map_file_error(error, self.file, self.start, self.length, iova)


def map_below(ioas: IOAS, held: View, below: int, flags: int) -> DMAMapping:
    """Map a buffer at the lowest free address such that the last byte is below ``below``."""
    mapping = DMAMapping(ioas)
    try:
        _MapBuffer(mapping, held, len(held), flags).map_below(below)
        return mapping
    except BaseException:
        mapping.unmap()
        release_unmapped(ioas, mapping, held)
        raise


def map_file(
    ioas: IOAS, file: int, length: int, *, start: int, iova: int | None, below: int | None, flags: int
) -> DMAMapping:
    """Map a range of a file."""
    start, length = whole(start, "start"), whole(length, "length")
    if start < 0 or not 0 < length <= U64_MAX - start:
        raise ValueError(f"start {start} and length {length} are not a range of a file")
    if iova is not None:
        iova = whole(iova, "iova")
        if not 0 <= iova <= U64_MAX:
            raise ValueError(f"iova {iova} does not fit 64 bits without a sign")
    # As for memory of the process: without a device the kernel accepts a piece of a page, and fails the attach for it.
    for name, number in (("start", start), ("length", length), ("iova", iova or 0)):
        if number % mmap.PAGESIZE:
            raise ValueError(f"the {name} {number:#x} is not on a page boundary of {mmap.PAGESIZE} bytes")
    request = _MapFile(DMAMapping(ioas), _kind(file), length, flags, file, start)
    if below is not None:
        if iova is not None:
            raise ValueError("iova and below exclude each other")
        request.map_below(whole(below, "below"))
    elif code := request.map_at(iova):
        raise request.error(code, iova)
    return request.mapping


def _kind(file: int) -> str:
    """What holds the memory of a file: it may be a dma-buf."""
    try:
        fcntl.fcntl(file, fcntl.F_GET_SEALS)  # those of memory have seals, and no dma-buf has
    except OSError:
        with contextlib.suppress(OSError):
            if str(Path(f"/proc/self/fd/{file}").readlink()).startswith("/dmabuf:"):
                return OF_DMA_BUF
    return OF_FILE


def copy_range(ioas: IOAS, source: IOAS, iova: int, length: int, dst_iova: int | None, flags: int) -> DMAMapping:
    """Map what another address space has mapped."""
    for tries in itertools.count():
        source._c.wanted = tries
        try:
            if (mapping := _copy(ioas, source, iova, length, dst_iova, flags)) is not None:
                return mapping
        finally:
            source._c.wanted = 0
    raise AssertionError("not reached")


def _copy(ioas: IOAS, source: IOAS, iova: int, length: int, dst_iova: int | None, flags: int) -> DMAMapping | None:
    """None where something was mapped or unmapped in the source meanwhile, and nothing copied."""
    changes = source._c.changes
    # The memory has to stay for this mapping too, whatever becomes of those that it is copied from.
    held = source._table.memory_of(iova, length)
    # To the kernel it is going to be a mapping for each that it is copied from, of this process or another.
    parts = [(max(at, iova), min(at + size, iova + length)) for at, size in source._table.overlapping(iova, length)]
    if sum(end - at for at, end in parts) < length:
        parts = [(iova, iova + length)]
    mapping = CopiedMapping(ioas, array("Q", [n for at, end in parts for n in (at - iova, end - at, 0, 0, 0)]))
    try:
        ioas._table[mapping] = held
        ioctls.ioas_copy(
            ioas._c,
            mapping._pieces.c,
            len(parts),
            flags=flags if dst_iova is None else flags | _FIXED,
            source=source._c,
            src_iova=iova,
            length=length,
            iova=dst_iova or 0,
            changes=changes,
        )
        mapping._made()
        return mapping
    except BaseException as error:
        mapping._made()
        mapping.unmap()
        if not isinstance(error, IoctlError):
            raise  # a signal handler's
        source._live()  # raises where it was closed meanwhile
        code = error.errno or 0
        if code == errno.EAGAIN:
            return None
        if code in (errno.ENOENT, errno.EPERM):
            target = f"{IOVARange(iova, iova + length - 1)} of {source!r}"
            hole = HOLE.cause(f"mapped: {source._table.words(iova, length) or 'nothing of it'}")
            raise ioctl_error("IOMMU_IOAS_COPY", code, target, (hole,) if code == errno.ENOENT else ()) from None
        raise refusal_error(ioas, code, "IOMMU_IOAS_COPY", length, dst_iova) from None


def map_pieces(ioas: IOAS, held: View, numbers: array[int], flags: int) -> DMAMappings:
    """Map pieces of a memory (for each offset, length, iova or `ANYWHERE`, and two times 0), all or none."""
    mappings = DMAMappings(ioas, numbers)
    pieces, count = mappings._pieces.c, len(numbers) // PIECE
    try:
        ioas._table[mappings] = held
        for start in range(0, count, PIECES_A_CALL):
            part = min(PIECES_A_CALL, count - start)
            result, done = ioctls.ioas_map_many(ioas._c, pieces, start, part, flags, held)
            if result:
                at = PIECE * (start + done)
                offset, length, iova = numbers[at : at + 3]
                raise buffer_map_error(ioas, -result, held, length, None if iova == ANYWHERE else iova, offset)
        mappings._made()
    except BaseException:
        mappings._made()
        mappings.unmap()
        release_unmapped(ioas, mappings, held)
        del held  # also where it was mapped in part, and is not released
        raise
    return mappings


def piece_numbers(pieces: Iterable[tuple[int, int, int | None]], size: int) -> array[int]:
    """What `IOAS.map_many` was given for a memory of that size in bytes, as `map_pieces` takes it."""
    numbers = array("Q")
    for piece in iterate(pieces, "pieces are (offset, length, iova), one after the other"):
        try:
            values: Iterator[Any] = iterate(piece, "three ints")
            offset, length, iova = values
            # Not those of NumPy, which overflow.
            offset, length = operator.index(offset), operator.index(length)
            iova = None if iova is None else operator.index(iova)
        except (TypeError, ValueError):
            raise TypeError(f"a piece is (offset, length, iova), three ints, not {piece!r:.60}") from None
        if not 0 <= offset <= size or not 0 < length <= size - offset:
            raise ValueError(f"{length:#x} bytes at {offset:#x} are not within the buffer's {size:#x}")
        if iova is not None and not 0 <= iova < U64_MAX:
            raise ValueError(f"iova {iova} does not fit 64 bits without a sign")
        numbers.extend((offset, length, ANYWHERE if iova is None else iova, 0, 0))
    if not numbers:
        raise ValueError("there is no piece to map")
    return numbers


def release_unmapped(ioas: IOAS, mapping: BaseMapping, held: View) -> None:
    """Release a buffer that was never mapped, which the exception's traceback would keep held.

    Left to the garbage collector, it may be in a cycle with a memoryview, where CPython 3.11 crashes (gh-77894). If it
    was mapped for a moment, another thread may have copied it; that mapping holds the same view.
    """
    if mapping not in ioas._table and not mapping._was_mapped():
        ioctls.release(held)


def buffer_map_error(
    ioas: IOAS, code: int, held: View, length: int, iova: int | None, offset: int = 0, below: int | None = None
) -> Exception:
    """The exception for a map that failed, by the negative of its result."""
    if code == -NOT_ON_PAGES:
        return misaligned(ioctls.address(held) + offset, length, iova)
    return refusal_error(ioas, code, "IOMMU_IOAS_MAP", length, iova, below)


def refusal_error(
    ioas: IOAS, code: int, request: str, length: int, iova: int | None, below: int | None = None
) -> IoctlError:
    """The exception for a map or copy that was refused: by the kernel, or for want of room below an address.

    Raises ClosedError or ForkedError instead if the address space is closed by now, or is the parent's.
    """
    ioas._live()
    there = "" if iova is None else ioas._table.words(iova, length)
    within = "" if below is None else f", of which those below {below:#x} are asked for"
    kept = ", ".join(map(str, ioas._allowed)) + within if ioas._allowed else ""
    return map_error(code, request, repr(ioas), length, iova, ranges_in_words(ioas) + within, there, kept)


def ranges_in_words(ioas: IOAS) -> str:
    """Where an address space takes mappings, for a message."""
    try:
        return ", ".join(map(str, ioas.iova_ranges())) or "no addresses at all"
    except IOMMUFDError as error:
        return f"ranges that cannot be read ({error})"
