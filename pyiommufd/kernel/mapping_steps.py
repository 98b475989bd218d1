"""What `IOAS.map` and its relatives do after their arguments were checked, and how they take it back."""

from __future__ import annotations

import errno
import mmap
from array import array
from typing import TYPE_CHECKING

from .. import uapi
from ..diagnose.mapping import map_error
from ..errors import IoctlError, IOMMUFDError
from ..uapi import ioctls
from ..uapi.ioctls import FAILED, View, ioas_map, last_errno
from .arguments import misaligned
from .iova import IOVARange, first_fit
from .mapping import PENDING, PIECES_A_CALL, DMAMapping, DMAMappings

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
    if below <= 0:
        raise ValueError(f"nothing is below {below}")
    fd, length = ioas.fd(), len(held)
    allowed, alignment = ioctls.ioas_iova_ranges(fd, ioas.id)
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
            if ioas_map(fd, ioas.id, flags | _FIXED, held, length, place) != FAILED:
                mapping.iova = place
                return mapping
            code = last_errno()
        except BaseException:
            undo(mapping, ioas)
            raise
        del ioas.table[mapping]
        if code != errno.EEXIST:
            raise map_failed(ioas, code, held, length, place)
        # Another thread was quicker, or a process that shares this iommufd has something there.
        taken.append((place, alignment))


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
        raise
    return mappings


def map_failed(ioas: IOAS, code: int, held: View, length: int, iova: int | None, offset: int = 0) -> Exception:
    """The exception for a map that failed: errno 0 says that it was not on page boundaries."""
    if code == 0:
        return misaligned(ioctls.address(held) + offset, length, iova)
    return refused(ioas, code, "IOMMU_IOAS_MAP", length, iova)


def refused(ioas: IOAS, code: int, request: str, length: int, iova: int | None) -> IoctlError:
    """The exception for a map or copy that the kernel refused."""
    there = "" if iova is None else ioas.table.words(iova, length)
    return map_error(code, request, repr(ioas), length, iova, ranges_in_words(ioas), there)


def ranges_in_words(ioas: IOAS) -> str:
    """Where an address space takes mappings, for a message."""
    try:
        return ", ".join(map(str, ioas.iova_ranges())) or "no addresses at all"
    except IOMMUFDError as error:
        return f"ranges that cannot be read ({error})"
