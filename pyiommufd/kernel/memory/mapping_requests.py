"""The requests behind `IOAS.map`, `map_many`, `map_file` and `copy_from`, and how they are rolled back.

Of memory that is not mapped in the end, because of a refusal or of an exception from a signal handler, nothing may stay
held: the caller closes the buffer next, maybe while the exception's traceback still has the frames of here. So only the
function that calls `hold` has a variable with what that gives, and empties it in any case, before it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyiommufd import diagnose, uapi
from pyiommufd.errors import IoctlError, IOMMUFDError, ioctl_error
from pyiommufd.iterables import iterate
from pyiommufd.kernel.memory.arguments import U64_MAX, access_flags, check_progress, hold, misaligned, whole
from pyiommufd.kernel.memory.iova import IOVARange, first_fit
from pyiommufd.kernel.memory.mapping import PIECES_A_CALL, DMAMapping, DMAMappings, MappingInPieces
from pyiommufd.kernel.memory.mapping_table import OF_DMA_BUF, OF_FILE
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.fast import Held, pack_pieces
from pyiommufd.uapi.ioctls import ANYWHERE, NOT_ON_PAGES, PIECE

if TYPE_CHECKING:
    from pyiommufd.kernel.memory.ioas import IOAS

_FIXED: int = uapi.IOMMU_IOAS_MAP_FIXED_IOVA

PROGRESS_BYTES = 1 << 30
"""Bytes of a piece of a map with progress: the largest huge page, so that none is cut; a second or so to fault in."""


def map_below(ioas: IOAS, buffer: object, iova: int | None, below: int, flags: int) -> DMAMapping:
    """Map a buffer at the lowest free address such that the last byte is below ``below``."""
    held: Held | None = None
    try:
        held = hold(buffer, bool(flags & uapi.IOMMU_IOAS_MAP_WRITEABLE))
        length, address = len(held), held.address
        return _map_lowest(
            ioas,
            length,
            _limit(iova, below),
            lambda at: ioas._mapper.map(held, at, flags),
            lambda code, at: buffer_map_error(ioas, (code, address, length), at, below),
        )
    finally:
        held = None


def _limit(iova: int | None, below: int) -> int:
    if iova is not None:
        raise ValueError("iova and below exclude each other")
    below = whole(below, "below")
    if below <= 0:
        raise ValueError(f"below has to be positive, not {below}")
    return below


def _map_lowest(
    ioas: IOAS,
    length: int,
    below: int,
    map_at: Callable[[int], DMAMapping | tuple[int, int, int]],
    error: Callable[[int, int | None], Exception],
) -> DMAMapping:
    """Map at the lowest free address. error: of the negative errno and the address; without one: there is no room."""
    ranges, alignment, taken = _room(ioas)
    while True:
        iova = first_fit(ranges, taken, length, below, alignment)
        if iova is None:
            raise error(-errno.ENOSPC, None)
        result = map_at(iova)
        if isinstance(result, DMAMapping):
            return result
        if result[0] != -errno.EEXIST:
            raise error(result[0], iova)
        # Another thread was quicker, or a process that shares this iommufd has something there.
        taken.append((iova, alignment))


def _room(ioas: IOAS) -> tuple[Sequence[IOVARange], int, list[tuple[int, int]]]:
    """Where mappings can be, what their addresses are multiples of, and where this process has some."""
    reachable, alignment = ioas._call(ioctls.ioas_iova_ranges)
    # What is allowed is reachable: the kernel refuses to allow anything else, and an attach that would change it.
    ranges = ioas._allowed or [IOVARange(*one) for one in reachable]
    return ranges, max(alignment, mmap.PAGESIZE), ioas._table.places()


def map_with_progress(
    ioas: IOAS, buffer: object, iova: int | None, below: int | None, flags: int, progress: Callable[[int, int], object]
) -> DMAMapping:
    """Map a buffer by pieces of `PROGRESS_BYTES`, in a row, all or none."""
    check_progress(progress)
    ioas._live()
    limit = U64_MAX if below is None else _limit(iova, below)
    if iova is not None and not 0 <= (iova := whole(iova, "iova")) <= U64_MAX:
        raise ValueError(f"iova {iova} does not fit 64 bits without a sign")
    held: Held | None = None
    mapping: MappingInPieces | None = None
    try:
        held = hold(buffer, bool(flags & uapi.IOMMU_IOAS_MAP_WRITEABLE))
        length, address = len(held), held.address
        if not length or (address | length | (iova or 0)) % mmap.PAGESIZE:
            raise misaligned(address, length, iova)
        ranges, alignment, taken = _room(ioas)
        # As the kernel does where it chooses: huge pages are huge in the IOMMU's page table only then.
        huge = max(alignment, min(address & -address, PROGRESS_BYTES))
        for tries in itertools.count():
            at = iova
            if at is None:
                at = first_fit(ranges, taken, length, limit, huge) or first_fit(ranges, taken, length, limit, alignment)
            if at is None:
                raise buffer_map_error(ioas, (-errno.ENOSPC, address, length), None, below)
            if at + length - 1 > U64_MAX:
                raise buffer_map_error(ioas, (-errno.EOVERFLOW, address, length), at)
            mapping = MappingInPieces(ioas._mapper, _in_a_row(address, length, at))
            ioas._table[mapping] = held
            refused = _map_in_a_row(mapping, address, flags, progress)
            mapping._made()
            if refused is None:
                return mapping
            mapping.unmap()
            at += refused[1] - address
            if iova is not None or refused[0] != -errno.EEXIST:
                raise buffer_map_error(ioas, refused, at, below)
            # As in `_map_lowest`; but after a few times well beyond, as each time much may have been mapped.
            taken.append((at, alignment << tries))
        raise AssertionError("not reached")
    except BaseException:
        if mapping is not None:
            mapping._made()
            mapping.unmap()
        raise
    finally:
        held = None


def _in_a_row(address: int, length: int, iova: int) -> array[int]:
    """The pieces of a memory that begins at that address, mapped from that iova on."""
    # At multiples of it in memory, so that no huge page is cut.
    ends = [*range(PROGRESS_BYTES - address % PROGRESS_BYTES, length, PROGRESS_BYTES), length]
    places = zip([0, *ends], ends, strict=False)
    return array("Q", [n for at, end in places for n in (at, end - at, iova + at, 0, 0)])


def _map_in_a_row(
    mapping: MappingInPieces, address: int, flags: int, progress: Callable[[int, int], object]
) -> tuple[int, int, int] | None:
    """Map the pieces of a memory at that address; where one is refused: the negative errno, its address and length."""
    numbers = mapping._pieces.numbers
    total = sum(numbers[1::PIECE])
    for piece in range(len(mapping._pieces)):
        result, _ = ioctls.ioas_map_many(mapping._ioas._c, mapping._pieces.c, piece, 1, flags, address)
        offset, size = numbers[PIECE * piece : PIECE * piece + 2]
        if result:
            return result, address + offset, size
        progress(offset + size, total)
    return None


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
    memory = _kind(file)

    def map_at(at: int | None) -> DMAMapping | tuple[int, int, int]:
        return ioas._mapper.map_file(memory, file, start, length, at, flags)

    def error(code: int, at: int | None) -> Exception:
        refusal = refusal_error(ioas, -code, "IOMMU_IOAS_MAP_FILE", length, at, below)
        return diagnose.map_file_error(refusal, file, start, length, at)

    if below is not None:
        return _map_lowest(ioas, length, _limit(iova, below), map_at, error)
    result = map_at(iova)
    if isinstance(result, DMAMapping):
        return result
    raise error(result[0], iova)


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
    # To the kernel it is going to be a mapping for each that it is copied from, of this process or another.
    parts = [(max(at, iova), min(at + size, iova + length)) for at, size in source._table.overlapping(iova, length)]
    if sum(end - at for at, end in parts) < length:
        parts = [(iova, iova + length)]
    mapping = MappingInPieces(
        ioas._mapper, array("Q", [n for at, end in parts for n in (at - iova, end - at, 0, 0, 0)])
    )
    try:
        # The memory has to stay for this mapping too, whatever becomes of those that it is copied from.
        ioas._table[mapping] = source._table.memory_of(iova, length)
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
            hole = diagnose.HOLE.cause(f"mapped: {source._table.words(iova, length) or 'nothing of it'}")
            raise ioctl_error("IOMMU_IOAS_COPY", code, target, (hole,) if code == errno.ENOENT else ()) from None
        raise refusal_error(ioas, code, "IOMMU_IOAS_COPY", length, dst_iova) from None


def map_pieces(
    ioas: IOAS, buffer: object, pieces: Iterable[tuple[int, int, int | None]], *, readable: bool, writeable: bool
) -> DMAMappings:
    """Map pieces of a buffer, all or none."""
    flags = access_flags(readable, writeable)
    held: Held | None = None
    mappings: DMAMappings | None = None
    try:
        held = hold(buffer, writeable)
        mappings = DMAMappings(ioas, piece_numbers(pieces, len(held)))
        ioas._table[mappings] = held
        _map_pieces(mappings, held.address, flags)
        mappings._made()
        return mappings
    except BaseException:
        if mappings is not None:
            mappings._made()
            mappings.unmap()
        raise
    finally:
        held = None


def _map_pieces(mappings: DMAMappings, address: int, flags: int) -> None:
    """Map those of a memory at that address, up to the first that is refused."""
    ioas, pieces, count = mappings._ioas, mappings._pieces, len(mappings._pieces)
    for start in range(0, count, PIECES_A_CALL):
        part = min(PIECES_A_CALL, count - start)
        result, done = ioctls.ioas_map_many(ioas._c, pieces.c, start, part, flags, address)
        if result:
            at = PIECE * (start + done)
            offset, length, iova = pieces.numbers[at : at + 3]
            raise buffer_map_error(ioas, (result, address + offset, length), None if iova == ANYWHERE else iova)


def piece_numbers(pieces: Iterable[tuple[int, int, int | None]], size: int) -> array[int]:
    """What `IOAS.map_many` was given for a memory of that size in bytes, as `map_pieces` takes it."""
    if type(pieces) is list and pieces:
        numbers = array("Q", (0,)) * (PIECE * len(pieces))
        if pack_pieces(numbers, pieces, size):
            return numbers
    numbers = array("Q")
    for piece in iterate(pieces, "pieces are (offset, length, iova), one after the other"):
        try:
            values: Iterator[Any] = iterate(piece, "three ints")
            offset, length, iova = values
            # Not those of NumPy, which overflow.
            offset, length = operator.index(offset), operator.index(length)
            iova = None if iova is None else operator.index(iova)
        except (TypeError, ValueError):
            raise TypeError(f"a piece is (offset, length, iova or None) of ints, not {piece!r:.60}") from None
        if not 0 <= offset <= size or not 0 < length <= size - offset:
            raise ValueError(f"{length:#x} bytes at {offset:#x} are not within the buffer's {size:#x}")
        if iova is not None and not 0 <= iova < U64_MAX:
            raise ValueError(f"iova {iova} does not fit 64 bits without a sign")
        numbers.extend((offset, length, ANYWHERE if iova is None else iova, 0, 0))
    if not numbers:
        raise ValueError("there is no piece to map")
    return numbers


def buffer_map_error(
    ioas: IOAS, refused: tuple[int, int, int], iova: int | None, below: int | None = None
) -> Exception:
    """The exception for a refused map. refused: the negative errno or `NOT_ON_PAGES`, the address and the length."""
    result, address, length = refused
    if result == NOT_ON_PAGES:
        return misaligned(address, length, iova)
    return refusal_error(ioas, -result, "IOMMU_IOAS_MAP", length, iova, below)


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
    return diagnose.map_error(code, request, repr(ioas), length, iova, ranges_in_words(ioas) + within, there, kept)


def ranges_in_words(ioas: IOAS) -> str:
    """Where an address space takes mappings, for a message."""
    try:
        return ", ".join(map(str, ioas.iova_ranges())) or "no addresses at all"
    except IOMMUFDError as error:
        return f"ranges that cannot be read ({error})"
