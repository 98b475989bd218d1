"""What `IOAS.map` and its relatives do after their arguments were checked, and how they take it back."""

from __future__ import annotations

import errno
import mmap
import operator
from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .. import uapi
from ..diagnose.mapping import map_error, map_file_error
from ..errors import IoctlError, IOMMUFDError
from ..uapi import ioctls
from ..uapi.ioctls import FAILED, View, ioas_map, ioas_map_file, last_errno
from .arguments import U64_MAX, misaligned
from .iova import IOVARange, first_fit
from .mapping import PENDING, PIECES_A_CALL, CopiedMapping, DMAMapping, DMAMappings
from .mapping_table import OF_FILE

if TYPE_CHECKING:
    from .ioas import IOAS

_FIXED: int = uapi.IOMMU_IOAS_MAP_FIXED_IOVA


def undo(mapping: DMAMapping, ioas: IOAS) -> None:
    """A signal handler raised while it was being mapped: unmap it where it had come so far."""
    if mapping.iova == PENDING:
        got = ioctls.ioas_last_map(ioas.fd(), ioas.id)
        # The last call may have been an earlier one, whose mapping is on record then.
        if got != FAILED and not ioas.table.overlapping(got, mapping.length):
            mapping.iova = got
    if mapping.iova == PENDING:
        ioas.table.pop(mapping, None)
    else:
        mapping.unmap()


def map_below(ioas: IOAS, held: View, below: int, flags: int) -> DMAMapping:
    """Map at the lowest free address from which the last byte stays below an address."""
    fd, length = ioas.fd(), len(held)

    def issue(place: int) -> int:
        return ioas_map(fd, ioas.id, flags | _FIXED, held, length, place)

    def failed(code: int, place: int) -> Exception:
        return map_failed(ioas, code, held, length, place)

    mapping = None
    try:
        mapping = _first_free(ioas, held, length, below, issue, failed)
    finally:
        if mapping is None:
            ioctls.release(held)
    return mapping


def _first_free(
    ioas: IOAS,
    held: object,
    length: int,
    below: int,
    issue: Callable[[int], int],
    failed: Callable[[int, int], Exception],
) -> DMAMapping:
    if below <= 0:
        raise ValueError(f"nothing is below {below}")
    allowed, alignment = ioctls.ioas_iova_ranges(ioas.fd(), ioas.id)
    ranges = [IOVARange(*one) for one in allowed]
    alignment = max(alignment, mmap.PAGESIZE)
    taken = ioas.table.places()
    while True:
        place = first_fit(ranges, taken, length, below, alignment)
        if place is None:
            room = f"{ranges_in_words(ioas)}, of which those below {below:#x} are asked for"
            raise map_error(errno.ENOSPC, "IOMMU_IOAS_MAP", repr(ioas), length, None, room)
        mapping = DMAMapping(ioas, PENDING, length)
        try:
            ioas.table[mapping] = held
            if issue(place) != FAILED:
                mapping.iova = place
                return mapping
            code = last_errno()
        except BaseException:
            undo(mapping, ioas)
            raise
        del ioas.table[mapping]
        if code != errno.EEXIST:
            raise failed(code, place)
        # Another thread was quicker, or a process that shares this iommufd has something there.
        taken.append((place, alignment))


def map_file(
    ioas: IOAS, file: int, length: int, *, start: int, iova: int | None, below: int | None, flags: int
) -> DMAMapping:
    """Map a range of a file."""
    fd = ioas.fd()
    start, length = operator.index(start), operator.index(length)
    if not 0 <= start <= U64_MAX or not 0 < length <= U64_MAX:
        raise ValueError(f"start {start} and length {length} are no range of a file")
    if iova is not None:
        iova = operator.index(iova)
        if not 0 <= iova <= U64_MAX:
            raise ValueError(f"iova {iova} does not fit 64 bits without a sign")
    # As for memory of the process: without a device the kernel accepts a piece of a page, and fails the attach for it.
    for name, number in (("start", start), ("length", length), ("iova", iova or 0)):
        if number % mmap.PAGESIZE:
            raise ValueError(f"the {name} {number:#x} is not on a page boundary of {mmap.PAGESIZE} bytes")

    def issue(place: int | None) -> int:
        place_flags, at = (flags, 0) if place is None else (flags | _FIXED, place)
        return ioas_map_file(fd, ioas.id, place_flags, file, start, length, at)

    def failed(code: int, place: int | None) -> Exception:
        return file_refused(ioas, code, file, start, length, place)

    if below is not None:
        if iova is not None:
            raise ValueError("iova says where, below lets the address be chosen: not both")
        return _first_free(ioas, OF_FILE, length, operator.index(below), issue, failed)
    mapping = DMAMapping(ioas, PENDING, length)
    try:
        ioas.table[mapping] = OF_FILE
        got = issue(iova)
        if got != FAILED:
            mapping.iova = got
            return mapping
        code = last_errno()
    except BaseException:
        undo(mapping, ioas)
        raise
    del ioas.table[mapping]
    raise failed(code, iova)


def copy_range(ioas: IOAS, source: IOAS, iova: int, length: int, dst_iova: int | None, flags: int) -> DMAMapping:
    """Map what another address space has mapped."""
    # The memory has to stay for this mapping too, whatever becomes of those that it is copied from.
    held = source.table.memory_of(iova, length)
    # To the kernel it is going to be a mapping for each that it is copied from.
    parts = [(max(at, iova), min(at + size, iova + length)) for at, size in source.table.overlapping(iova, length)]
    mapping = DMAMapping(ioas, PENDING, length)
    try:
        ioas.table[mapping] = held
        mapping.iova = ioctls.ioas_copy(
            ioas.fd(),
            flags=flags if dst_iova is None else flags | _FIXED,
            dst_ioas_id=ioas.id,
            src_ioas_id=source.id,
            length=length,
            dst_iova=dst_iova or 0,
            src_iova=iova,
        )
    except IoctlError as error:
        ioas.table.pop(mapping, None)
        code = error.errno or 0
        if code in (errno.ENOENT, errno.EPERM):
            target = f"{IOVARange(iova, iova + length - 1)} of {source!r}"
            raise ioctls.failure("IOMMU_IOAS_COPY", target, code) from None
        raise refused(ioas, code, "IOMMU_IOAS_COPY", length, dst_iova) from None
    except BaseException:
        undo(mapping, ioas)
        raise
    if len(parts) < 2:
        return mapping
    pieces = array("Q", [n for at, end in parts for n in (0, end - at, at - iova + mapping.iova)])
    copied = CopiedMapping(ioas, mapping.iova, length, pieces)
    ioas.table[copied] = held
    del ioas.table[mapping]
    return copied


def map_pieces(ioas: IOAS, held: View, pieces: array[int], flags: int) -> DMAMappings:
    """Map pieces of a memory (for each offset, length, iova or `FAILED`), all or none."""
    fd = ioas.fd()
    mappings = DMAMappings(ioas, array("Q"))
    part = array("Q", [0])
    counted = True
    try:
        ioas.table[mappings] = held
        for start in range(0, len(pieces), 3 * PIECES_A_CALL):
            part, counted = pieces[start : start + 3 * PIECES_A_CALL], False
            part.append(0)
            done = 3 * ioctls.ioas_map_many(fd, ioas.id, flags, held, part)
            code = last_errno()
            mappings.extend(part[:done])
            counted = True
            if done < len(part) - 1:
                offset, length, iova = part[done : done + 3]
                raise map_failed(ioas, code, held, length, None if iova == FAILED else iova, offset)
    except BaseException:
        if not counted:  # a signal handler raised: the number at the end says how far the call had come
            mappings.extend(part[: 3 * part[-1]])
        mappings.unmap()
        let_go(ioas, mappings, held)
        raise
    return mappings


def piece_numbers(pieces: Iterable[tuple[int, int, int | None]], size: int) -> array[int]:
    """What `IOAS.map_many` was given for a memory of that size in bytes, as `map_pieces` takes it.

    Raises:
        TypeError, ValueError: It is nothing of the kind.
    """
    numbers = array("Q")
    try:
        if isinstance(pieces, memoryview):  # to go through a released one leaves CPython 3.11 with an exception set
            raise TypeError("pieces are (offset, length, iova), one after the other, and no memory")
        for offset, length, iova in pieces:
            # Not those of NumPy, which overflow.
            offset, length = operator.index(offset), operator.index(length)
            if not 0 <= offset <= size or not 0 < length <= size - offset:
                raise ValueError(f"{length:#x} bytes at {offset:#x} are not within the buffer's {size:#x}")
            if iova is not None and not 0 <= operator.index(iova) < U64_MAX:
                raise ValueError(f"iova {iova} does not fit 64 bits without a sign")
            numbers.extend((offset, length, FAILED if iova is None else iova))
    except NotImplementedError:  # what a memoryview of several dimensions answers
        raise TypeError("pieces are (offset, length, iova)") from None
    if not numbers:
        raise ValueError("there is no piece to map")
    return numbers


def let_go(ioas: IOAS, mapping: DMAMapping | DMAMappings, held: View) -> None:
    """Let go of memory that was not mapped: the traceback of the exception would keep it held.

    In one cycle of garbage with a memoryview it would be, say, where CPython 3.11 crashes (gh-77894).
    """
    if mapping not in ioas.table:
        ioctls.release(held)


def map_failed(ioas: IOAS, code: int, held: View, length: int, iova: int | None, offset: int = 0) -> Exception:
    """The exception for a map that failed: errno 0 says that it was not on page boundaries."""
    if code == 0:
        return misaligned(ioctls.address(held) + offset, length, iova)
    return refused(ioas, code, "IOMMU_IOAS_MAP", length, iova)


def refused(ioas: IOAS, code: int, request: str, length: int, iova: int | None) -> IoctlError:
    """The exception for a map or copy that the kernel refused."""
    there = "" if iova is None else ioas.table.words(iova, length)
    return map_error(code, request, repr(ioas), length, iova, ranges_in_words(ioas), there)


def file_refused(ioas: IOAS, code: int, file: int, start: int, length: int, iova: int | None) -> IoctlError:
    """The exception for a map of a file that the kernel refused."""
    there = "" if iova is None else ioas.table.words(iova, length)
    return map_file_error(code, repr(ioas), file, start, length, iova, ranges_in_words(ioas), there)


def ranges_in_words(ioas: IOAS) -> str:
    """Where an address space takes mappings, for a message."""
    try:
        return ", ".join(map(str, ioas.iova_ranges())) or "no addresses at all"
    except IOMMUFDError as error:
        return f"ranges that cannot be read ({error})"
