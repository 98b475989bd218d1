"""Checks of what callers pass to map and unmap, and the errors that say what is wrong with it."""

from __future__ import annotations

import mmap
import operator
from collections.abc import Iterable
from typing import Protocol, SupportsIndex

from pyiommufd import uapi
from pyiommufd.iterables import iterate
from pyiommufd.kernel.memory.iova import IOVARange
from pyiommufd.uapi.fast import Held

U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
READ_ONLY = "this memory is read-only: map it with writeable=False"

_READABLE: int = uapi.IOMMU_IOAS_MAP_READABLE
_WRITEABLE: int = uapi.IOMMU_IOAS_MAP_WRITEABLE
BOTH = _READABLE | _WRITEABLE
"""The flags of a mapping that devices may read and write."""


def check_bool(value: object, name: str) -> bool:
    """Require a bool: no truthy value such as a string, and no NumPy bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r:.60}")
    return value


def check_progress(progress: object) -> None:
    """Require what is called after each piece of something long."""
    import inspect  # slow to import, and for what is long alone

    if not callable(progress):
        raise TypeError(f"{progress!r} cannot be called")
    if inspect.iscoroutinefunction(progress):
        raise TypeError(f"{progress!r} is a coroutine function: progress is an ordinary one, which is not awaited")


def access_flags(readable: bool, writeable: bool) -> int:
    """The flags of IOMMU_IOAS_MAP and COPY for what devices may do; to do nothing is a ValueError."""
    flags = (_READABLE if readable else 0) | (_WRITEABLE if writeable else 0)
    if not flags:
        raise ValueError("a mapping is readable or writeable for the device, or both")
    return flags


def hold(buffer: object, writeable: bool) -> Held:
    """Hold a buffer's memory, so that its owner can neither free nor resize it."""
    try:
        return Held(buffer, writeable)
    except (BufferError, TypeError) as error:
        raise unshared(error, buffer) from None


def unshared(error: BufferError | TypeError, buffer: object) -> ValueError | TypeError:
    """The error for an object that cannot be mapped: no buffer, read-only, or not contiguous."""
    if isinstance(error, TypeError):
        return TypeError(f"what is mapped is a buffer, such as a DMABuffer, not {type(buffer).__name__}")
    try:
        read_only = memoryview(buffer).readonly  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        read_only = False
    return ValueError(READ_ONLY if read_only else f"this buffer does not share its memory: {error}")


def whole(value: SupportsIndex, name: str) -> int:
    """An argument as a plain int: those of NumPy overflow when they are added."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is an int, not {value!r:.60}") from None


def check_range(iova: int, length: int) -> tuple[int, int]:
    """A range of addresses, which is not empty, as plain ints."""
    iova, length = whole(iova, "iova"), whole(length, "length")
    if not 0 <= iova <= U64_MAX or not 0 < length <= U64_MAX:
        raise ValueError(f"iova {iova} and length {length} are not a range of 64-bit addresses")
    return iova, length


def address_ranges(ranges: Iterable[IOVARange | tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of addresses as callers give them, as pairs of the first and the inclusive last address."""
    pairs = []
    for one in iterate(ranges, "ranges are IOVARange objects or pairs of addresses"):
        try:
            start, last = (one.start, one.last) if isinstance(one, IOVARange) else iterate(one, "two ints")
            start, last = operator.index(start), operator.index(last)
        except (TypeError, ValueError):
            raise TypeError(f"a range is an IOVARange or a pair of addresses, not {one!r:.60}") from None
        if not 0 <= start <= last <= U64_MAX:
            raise ValueError(f"{start:#x}..{last:#x} is not a range of 64-bit addresses")
        pairs.append((start, last))
    return pairs


def misaligned(address: int, length: int, iova: int | None) -> ValueError:
    """The error for what does not begin and end on page boundaries."""
    page = mmap.PAGESIZE
    if not length:
        return ValueError("there is nothing to map: the buffer has 0 bytes")
    if address % page or length % page:
        return ValueError(
            f"the buffer (address {address:#x}, length {length:#x}) does not begin and end on page boundaries of "
            f"{page} bytes; devices would see what lies beside it. Use a DMABuffer, or a page-aligned part of one"
        )
    where = "" if iova is None else f" {iova:#x}"
    return ValueError(f"iova{where} is not on a page boundary of {page} bytes")


class SupportsFileno(Protocol):
    """The protocol of objects that have a file descriptor."""

    def fileno(self) -> int:
        """The file descriptor."""


def file_number(file: SupportsFileno | int) -> int:
    """The number of an fd, or of the fd that an object has."""
    number = operator.index(file) if isinstance(file, SupportsIndex) else _fileno(file)
    if not 0 <= number <= 0x7FFF_FFFF:
        raise ValueError(f"{number} is not a file descriptor")
    return number


def _fileno(file: object) -> int:
    try:
        return operator.index(file.fileno())  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(f"a file is an fd or an object with fileno(), not {type(file).__name__}") from None
