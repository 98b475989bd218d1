"""The ioctls of iommufd: a typed interface to the compiled extension; `device_ioctls` has those of devices.

Above them there is no request number, and cdata only as what is typed here, such as `File`, `Object`, `Piece` and
`Cell`. Every function raises `pyiommufd.errors.IoctlError`, bare of causes, when the kernel refuses; but for those that
map and unmap many pieces, which return what the C code does: the negative errno. (What cffi keeps as ffi.errno is
the thread's, and the calls of a signal handler write it over.) All of them release the GIL while the kernel works and
may be called from any thread.

What a call has done is on record before it returns: in a `File`, an `Object` or `Pieces`, which the caller makes
beforehand. So an exception that a signal handler raises finds it there, at whatever moment.
"""

from __future__ import annotations

import errno
import os

from pyiommufd import uapi
from pyiommufd._uapi import ffi, lib
from pyiommufd.errors import ioctl_error
from pyiommufd.light_typing import TYPE_CHECKING, NewType, Protocol, cast
from pyiommufd.uapi import fast

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TypeAlias


class File(Protocol):
    """An fd and its owner (struct pyiommufd_file), which closes it when it is freed.

    What uses it after `close` gets EBADF, also in another thread: `close` waits for the calls under way.

    Attributes:
        fd: The number; -1: none, or it is a forked parent's.
        users: How many calls are under way.
        inherited: In a forked child, that of its copy, until it is closed; -1: none.
    """

    fd: int
    users: int
    inherited: int


Fd: TypeAlias = File | int
"""An fd for a call; an int is an fd that the caller owns and keeps open meanwhile."""


class Object(Protocol):
    """What the kernel keeps behind an iommufd by an id (struct pyiommufd_object).

    Attributes:
        id: The id.
        state: 0: it is not there; `LIVE`.
        changes: How often something of this address space was mapped or unmapped, or was tried to be unmapped.
        wanted: Not 0: other calls yield to one that got EAGAIN.
    """

    id: int
    state: int
    changes: int
    wanted: int


class Piece(Protocol):
    """A mapping of the kernel's (struct pyiommufd_piece).

    Attributes:
        length: Bytes.
        iova: Where it is.
        state: 0: it is not mapped.
    """

    length: int
    iova: int
    state: int


LIVE = 1
"""The state of an object or piece that exists. 2: it exists, and one call has exclusive use of it."""

Pieces = NewType("Pieces", object)
"""Pieces that lie in memory one after the other, and the memory: see `pieces_of`."""

ANYWHERE = 0xFFFF_FFFF_FFFF_FFFF
"""The iova of a piece for which the kernel chooses one: no mapping can be there."""


class View(Protocol):
    """Memory held through the buffer protocol: while it exists, its owner cannot resize or free it."""

    def __len__(self) -> int:
        """Its length in bytes."""


NOT_ON_PAGES = 1
"""Address, length or iova of a map is not on page boundaries, or the length is 0: no ioctl was issued."""

CHAR_ARRAY: object = ffi.typeof("char[]")
"""The type of a `View`, made once."""

from_buffer = cast("Callable[[object, object, bool], View]", ffi.from_buffer)
"""(CHAR_ARRAY, buffer, writeable) -> the memory of an object that has the buffer protocol, held.

Raises:
    TypeError: It has no contiguous memory to share.
    BufferError, ValueError: It is read-only and is to be written to, or it is closed.
"""


def address(held: object) -> int:
    """The address of the memory that a `View` holds, or of what C has made: an `Object`, a window."""
    return int(ffi.cast("uintptr_t", held))


def release(held: View) -> None:
    """Let go of the memory at once, rather than when the last reference goes."""
    ffi.release(cast("Any", held))


def _check(result: int, request: str, target: str = "") -> int:
    """The result of a call, unless it is the negative errno of one that failed."""
    if result < 0:
        raise ioctl_error(request, -result, target)
    return result


class Cell(Protocol):
    """A number in memory that C writes."""

    def __getitem__(self, index: int) -> int:
        """The number; its index is 0."""

    def __setitem__(self, index: int, number: int) -> None:
        """Write it in place of C."""


def new_cell(kind: str) -> Cell:
    """A number of a C type, 0 at first."""
    return cast("Cell", ffi.new(f"{kind} *"))


# Files


def new_file() -> File:
    """An owner without an fd."""
    return cast("File", ffi.gc(ffi.new("struct pyiommufd_file *", (-1, -1, -1, -1, 0)), lib.pyiommufd_file_close))


def file_open(file: File, path: str, flags: int) -> None:
    """open, close-on-exec."""
    _check(lib.pyiommufd_file_open(_c(file), os.fsencode(path), flags), "open", path)


def file_eventfd(file: File) -> None:
    """eventfd, which does not block."""
    _check(lib.pyiommufd_file_eventfd(_c(file)), "eventfd")


def file_memfd(file: File, flags: int, length: int) -> None:
    """memfd_create and ftruncate, to a length in bytes."""
    _check(lib.pyiommufd_file_memfd(_c(file), b"pyiommufd", flags, length), "memfd_create")


def file_duplicate(file: File, other: Fd) -> None:
    """A second fd of the same open file."""
    _check(lib.pyiommufd_file_duplicate(_c(file), _c(other)), "fcntl")


def file_close(file: File) -> None:
    """close, once the calls under way have ended. Does nothing the second time."""
    _check(lib.pyiommufd_file_close(_c(file)), "close")


def file_forked(file: File) -> None:
    """This process is a forked child: nothing but `file_close` works from now on."""
    lib.pyiommufd_file_forked(_c(file))


def file_same(file: File, other: int) -> bool:
    """Whether two fds are of one open file (F_DUPFD_QUERY, kcmp); no, also where the kernel does not say."""
    return bool(lib.pyiommufd_file_same(_c(file), _c(other)))


def file_wait(file: File, milliseconds: int) -> None:
    """poll, until it is readable, closed, a signal comes, or for that time; -1: for as long as it takes."""
    result = lib.pyiommufd_file_wait(_c(file), milliseconds)
    if result not in (-errno.EINTR, -errno.EBADF):
        _check(result, "poll")


def file_readable(file: File) -> bool:
    """Whether poll says that there is something to read, now."""
    return int(lib.pyiommufd_file_readable(_c(file))) > 0


def file_watch(file: File, watch: File, end: File) -> None:
    """An fd (epoll) that is readable while a file is, and from its close on; it does not keep it open, as a copy would.

    end: kept open as long as the watch, which is to tell of the close.
    """
    _check(lib.pyiommufd_file_watch(_c(file), _c(watch), _c(end)), "epoll")


file_rest = lib.pyiommufd_file_rest
"""(the fd of a watch): it is readable no more until something new comes, or the file is closed."""

file_take = cast("Callable[[File], int]", lib.pyiommufd_file_take)
"""(an eventfd that does not block) -> its count, which becomes 0; or `NO_COUNT`: it cannot be read."""

NO_COUNT = (1 << 64) - 1
"""What no eventfd counts up to."""


def file_change16(file: File, offset: int, bits: int, on: bool) -> None:
    """Set or clear bits of 2 bytes, little-endian, by a pread and a pwrite that no signal handler comes between."""
    _check(lib.pyiommufd_file_change16(_c(file), offset, bits, on), "pwrite")


def file_read(file: File, length: int, offset: int = -1) -> bytes:
    """read, or pread where the offset is not negative: up to so many bytes."""
    memory = ffi.new("char[]", length)
    result = lib.pyiommufd_file_read(_c(file), memory, length, offset, ffi.NULL)
    return bytes(ffi.buffer(memory, _check(result, "read" if offset < 0 else "pread")))


def file_readinto(file: File, memory: bytearray, done: Cell) -> None:
    """read: done becomes how many bytes are in the memory now (``uint64_t``)."""
    held = ffi.from_buffer("char[]", memory, require_writable=True)
    _check(lib.pyiommufd_file_read(_c(file), held, len(held), -1, done), "read")


def file_write(file: File, data: Any, offset: int = -1) -> int:
    """write, or pwrite where the offset is not negative: how many bytes of a buffer were written."""
    held = ffi.from_buffer(data)
    result = lib.pyiommufd_file_write(_c(file), held, len(held), offset)
    return _check(result, "write" if offset < 0 else "pwrite")


def _c(record: Any) -> Any:
    """What was made here, as C takes it; or for an int, a file that is not owned."""
    return ffi.new("struct pyiommufd_file *", (record, -1, -1, -1, 0)) if isinstance(record, int) else record


# Failures on demand, for tests


def injection_begin(number: int) -> None:
    """Have the number-th allocation fail, from 1 on, that the kernel makes for this thread's calls of the library.

    For `pyiommufd.testing.mock.fail_nth` alone. ENOENT: a kernel without fail-nth; EALREADY: one is to fail already.
    """
    _check(lib.pyiommufd_injection_begin(number), "open", "/proc/thread-self/fail-nth")


def injection_end() -> int:
    """Let nothing fail any more. How many allocations were left to the one that was to fail; 0: it has failed."""
    return _check(lib.pyiommufd_injection_end(), "write", "/proc/thread-self/fail-nth")


# Objects


def new_object(iommufd: File) -> Object:
    """An object that is not there yet. The caller keeps the file as long as the object exists."""
    return cast("Object", ffi.new("struct pyiommufd_object *", {"file": iommufd}))


def _offset(command: Any, field: str) -> int:
    return int(dict(ffi.typeof(command).item.fields or [])[field].offset)


def _create_object(
    made: Object,
    request: str,
    command: Any,
    field: str,
    uses: Mapping[str, Object] | None = None,
    queue: File | None = None,
    fd_field: str = "",
) -> None:
    """Create a kernel object: ``field`` will have its id, and ``fd_field`` the fd of its queue.

    uses: what it is made for, by the fields of the command that are to have their ids.
    """
    command.size = ffi.sizeof(ffi.typeof(command).item)
    ids = ffi.new("struct pyiommufd_id[]", [(one, _offset(command, name)) for name, one in (uses or {}).items()])
    owner = ffi.NULL if queue is None else queue
    fd_at = _offset(command, fd_field) if fd_field else 0
    number, at = getattr(uapi, request), _offset(command, field)
    _check(lib.pyiommufd_make(made, number, command, at, ids, len(ids), owner, fd_at), request)


def _object_ioctl(made: Object, request: str, command: Any, field: str) -> int:
    """An ioctl of the iommufd about an object, whose id the field is to have. EBADF: it is not there."""
    command.size = ffi.sizeof(ffi.typeof(command).item)
    number, at = getattr(uapi, request), _offset(command, field)
    return int(lib.pyiommufd_object_ioctl(made, number, command, at))


def destroy(made: Object) -> None:
    """IOMMU_DESTROY. Does nothing where it is not there. For one thread at a time of those that use the iommufd."""
    _check(lib.pyiommufd_destroy(made), "IOMMU_DESTROY")


def abandon(made: Object) -> None:
    """Make all later calls fail, after waiting for those in progress; the kernel keeps the object."""
    lib.pyiommufd_abandon(made)


def ioas_unmap_left(ioas: Object, piece: Piece) -> bool:
    """IOMMU_IOAS_UNMAP in an address space that was abandoned: whether it is not mapped any more."""
    return not lib.pyiommufd_ioas_unmap_left(ioas, piece)


def ioas_alloc(made: Object) -> None:
    """IOMMU_IOAS_ALLOC: a new address space."""
    _create_object(made, "IOMMU_IOAS_ALLOC", ffi.new("struct iommu_ioas_alloc *"), "out_ioas_id")


PIECE = 5
"""How many numbers a piece has in an array: offset, length, iova, state, and one for the C code."""


def pieces_of(numbers: array[int]) -> Pieces:
    """Pieces in the memory of an array: `PIECE` numbers of 64 bits for each. It cannot be resized meanwhile."""
    return cast("Pieces", ffi.from_buffer("struct pyiommufd_piece[]", numbers, require_writable=True))


def piece_at(pieces: Pieces, index: int) -> Piece:
    """One of them. It is there as long as the pieces are."""
    return cast("Piece", cast("Any", pieces) + index)


def piece_of(made: fast.Mapping) -> Piece:
    """That of a mapping which its `fast.Mapper` made. It is there as long as the mapping is."""
    return cast("Piece", ffi.cast("struct pyiommufd_piece *", made._address))


def any_mapped(pieces: Pieces, count: int) -> bool:
    """Whether one of so many is mapped."""
    return bool(lib.pyiommufd_any_mapped(pieces, count))


def mapped_within(pieces: Pieces, count: int, iova: int, length: int) -> int:
    """Bytes of a range that so many pieces are mapped in."""
    return int(lib.pyiommufd_mapped_within(pieces, count, iova, length))


def ioas_map_many(ioas: Object, pieces: Pieces, start: int, count: int, flags: int, memory: int) -> tuple[int, int]:
    """IOMMU_IOAS_MAP for each of some pieces of what is at an address, by one call.

    Returns 0, the negative errno, or `NOT_ON_PAGES`, and how many were mapped before.

    `ANYWHERE` as an iova lets the kernel choose, and is overwritten by what it chose.
    """
    done = new_cell("uint64_t")
    result = lib.pyiommufd_ioas_map_many(ioas, piece_at(pieces, start), count, flags, ffi.cast("void *", memory), done)
    return int(result), done[0]


def ioas_unmap_many(pieces: Pieces, start: int, count: int) -> int:
    """IOMMU_IOAS_UNMAP for each of some pieces that is mapped, by one call, until one fails; 0 or negative errno."""
    return int(lib.pyiommufd_ioas_unmap_many(piece_at(pieces, start), count))


def ioas_unmap_range(ioas: Object, iova: int, length: int, touched: Sequence[Piece], changes: int) -> int:
    """IOMMU_IOAS_UNMAP of all within a range: how many bytes. EAGAIN: something was mapped or unmapped meanwhile.

    touched: what was mapped there, in part or whole, when the address space had that many changes. What is gone is not
    mapped any more, also where it fails.
    """
    unmapped = ffi.new("uint64_t *")
    pieces = ffi.new("struct pyiommufd_piece *[]", list(touched))
    result = lib.pyiommufd_ioas_unmap_range(ioas, iova, length, pieces, len(touched), changes, unmapped)
    _check(result, "IOMMU_IOAS_UNMAP")
    return int(unmapped[0])


def ioas_first_hole(ioas: Object, iova: int, length: int) -> int | None:
    """The first address of a range that is not mapped, by whatever process; None where all of it is.

    By IOMMU_IOAS_COPY to an address space that is made for it and destroyed again.
    """
    hole = ffi.new("uint64_t *")
    found = _check(lib.pyiommufd_ioas_first_hole(ioas, iova, length, hole), "IOMMU_IOAS_COPY")
    return int(hole[0]) if found else None


def try_page_table(device: Object, ioas: Object, iova: int = 0, length: int = 0, dst_iova: int = 0) -> int:
    """Whether a device can have a page table of what an address space maps: 0, or the errno.

    With a length, of that range alone, copied to an iova. What is made for it is destroyed again (IOMMU_HWPT_ALLOC,
    IOMMU_IOAS_COPY, IOMMU_DESTROY).
    """
    return -int(lib.pyiommufd_try_page_table(device, ioas, iova, length, dst_iova))


def ioas_copy(
    ioas: Object,
    pieces: Pieces,
    count: int,
    *,
    flags: int,
    source: Object,
    src_iova: int,
    length: int,
    iova: int,
    changes: int,
) -> None:
    """IOMMU_IOAS_COPY, of what are the pieces in the source.

    EAGAIN: something was mapped or unmapped in the source since it had so many changes.
    """
    result = lib.pyiommufd_ioas_copy(ioas, pieces, count, flags, source, src_iova, length, iova, changes)
    _check(result, "IOMMU_IOAS_COPY")


def ioas_allow_iovas(ioas: Object, ranges: Sequence[tuple[int, int]]) -> None:
    """IOMMU_IOAS_ALLOW_IOVAS; ranges: (start, inclusive last)."""
    allowed = ffi.new("struct iommu_iova_range[]", [{"start": start, "last": last} for start, last in ranges])
    given = {"num_iovas": len(ranges), "allowed_iovas": address(allowed)}
    command = ffi.new("struct iommu_ioas_allow_iovas *", given)
    _check(_object_ioctl(ioas, "IOMMU_IOAS_ALLOW_IOVAS", command, "ioas_id"), "IOMMU_IOAS_ALLOW_IOVAS")


def option(of: File | Object, option_id: int, value: int | None = None) -> int:
    """IOMMU_OPTION: set an option of an iommufd or of an object to the value, or get it where that is None."""
    op = uapi.IOMMU_OPTION_OP_GET if value is None else uapi.IOMMU_OPTION_OP_SET
    given = {"size": ffi.sizeof("struct iommu_option"), "option_id": option_id, "op": op, "val64": value or 0}
    command = ffi.new("struct iommu_option *", given)
    if hasattr(of, "fd"):
        result = lib.pyiommufd_ioctl(_c(of), uapi.IOMMU_OPTION, command)
    else:
        result = _object_ioctl(of, "IOMMU_OPTION", command, "object_id")
    _check(result, "IOMMU_OPTION")
    return int(command.val64)


def vfio_ioas(fd: Fd, op: int) -> int:
    """IOMMU_VFIO_IOAS: get or clear. Returns the id."""
    command = ffi.new("struct iommu_vfio_ioas *", {"size": ffi.sizeof("struct iommu_vfio_ioas"), "op": op})
    _check(lib.pyiommufd_ioctl(_c(fd), uapi.IOMMU_VFIO_IOAS, command), "IOMMU_VFIO_IOAS")
    return int(command.ioas_id)


def set_vfio_ioas(ioas: Object) -> None:
    """IOMMU_VFIO_IOAS: set it to this one."""
    command = ffi.new("struct iommu_vfio_ioas *", {"op": uapi.IOMMU_VFIO_IOAS_SET})
    _check(_object_ioctl(ioas, "IOMMU_VFIO_IOAS", command, "ioas_id"), "IOMMU_VFIO_IOAS")


def ioas_change_process(fd: Fd) -> None:
    """IOMMU_IOAS_CHANGE_PROCESS."""
    size = ffi.sizeof("struct iommu_ioas_change_process")
    command = ffi.new("struct iommu_ioas_change_process *", {"size": size})
    _check(lib.pyiommufd_ioctl(_c(fd), uapi.IOMMU_IOAS_CHANGE_PROCESS, command), "IOMMU_IOAS_CHANGE_PROCESS")


def ioas_noiommu_get_pa(ioas: Object, iova: int, length: int) -> tuple[int, int]:
    """IOMMU_IOAS_NOIOMMU_GET_PA: the physical address, and how many bytes are contiguous there."""
    command = ffi.new("struct iommu_ioas_noiommu_get_pa *", {"iova": iova, "length": length})
    _check(_object_ioctl(ioas, "IOMMU_IOAS_NOIOMMU_GET_PA", command, "ioas_id"), "IOMMU_IOAS_NOIOMMU_GET_PA")
    return int(command.out_phys), int(command.length)


def hwpt_alloc(made: Object, uses: Mapping[str, Object], *, flags: int, data_type: int, data: bytes) -> None:
    """IOMMU_HWPT_ALLOC: a page table that the device's IOMMU can walk, over an address space.

    uses: ``dev_id`` and ``pt_id``, and maybe ``fault_id``.
    """
    held = ffi.from_buffer(data)
    at = address(held) if data else 0
    given = {"flags": flags, "data_type": data_type, "data_len": len(data), "data_uptr": at}
    _create_object(made, "IOMMU_HWPT_ALLOC", ffi.new("struct iommu_hwpt_alloc *", given), "out_hwpt_id", uses)


def fault_queue_alloc(made: Object, queue: File) -> None:
    """IOMMU_FAULT_QUEUE_ALLOC: a queue, with its fd."""
    command = ffi.new("struct iommu_fault_alloc *")
    _create_object(made, "IOMMU_FAULT_QUEUE_ALLOC", command, "out_fault_id", queue=queue, fd_field="out_fault_fd")


def hwpt_invalidate(table: Object, data_type: int, entry_length: int, entries: bytes) -> tuple[int, int]:
    """IOMMU_HWPT_INVALIDATE, of a nested page table or a vIOMMU: the result, and how many entries were done."""
    held = ffi.from_buffer(entries)
    given = {"data_uptr": address(held), "data_type": data_type, "entry_len": entry_length}
    command = ffi.new("struct iommu_hwpt_invalidate *", given)
    command.entry_num = len(entries) // entry_length
    result = _object_ioctl(table, "IOMMU_HWPT_INVALIDATE", command, "hwpt_id")
    return int(result), int(command.entry_num)


def viommu_alloc(made: Object, uses: Mapping[str, Object], viommu_type: int, data: bytearray) -> None:
    """IOMMU_VIOMMU_ALLOC: uses: ``dev_id`` and ``hwpt_id``. The driver may write to the data."""
    held = ffi.from_buffer("char[]", data, require_writable=True)
    at = address(held) if data else 0
    command = ffi.new("struct iommu_viommu_alloc *", {"type": viommu_type, "data_len": len(data), "data_uptr": at})
    _create_object(made, "IOMMU_VIOMMU_ALLOC", command, "out_viommu_id", uses)


def vdevice_alloc(made: Object, uses: Mapping[str, Object], virtual_id: int) -> None:
    """IOMMU_VDEVICE_ALLOC: uses: ``viommu_id`` and ``dev_id``."""
    command = ffi.new("struct iommu_vdevice_alloc *", {"virt_id": virtual_id})
    _create_object(made, "IOMMU_VDEVICE_ALLOC", command, "out_vdevice_id", uses)


def veventq_alloc(made: Object, uses: Mapping[str, Object], queue: File, queue_type: int, depth: int) -> None:
    """IOMMU_VEVENTQ_ALLOC: a queue, with its fd; uses: ``viommu_id``."""
    command = ffi.new("struct iommu_veventq_alloc *", {"type": queue_type, "veventq_depth": depth})
    _create_object(made, "IOMMU_VEVENTQ_ALLOC", command, "out_veventq_id", uses, queue, "out_veventq_fd")


def hw_queue_alloc(
    made: Object, uses: Mapping[str, Object], *, queue_type: int, index: int, iova: int, length: int
) -> None:
    """IOMMU_HW_QUEUE_ALLOC: uses: ``viommu_id``."""
    given = {"type": queue_type, "index": index, "nesting_parent_iova": iova, "length": length}
    command = ffi.new("struct iommu_hw_queue_alloc *", given)
    _create_object(made, "IOMMU_HW_QUEUE_ALLOC", command, "out_hw_queue_id", uses)


def hwpt_set_dirty_tracking(hwpt: Object, flags: int) -> None:
    """IOMMU_HWPT_SET_DIRTY_TRACKING."""
    command = ffi.new("struct iommu_hwpt_set_dirty_tracking *", {"flags": flags})
    _check(_object_ioctl(hwpt, "IOMMU_HWPT_SET_DIRTY_TRACKING", command, "hwpt_id"), "IOMMU_HWPT_SET_DIRTY_TRACKING")


def hwpt_get_dirty_bitmap(hwpt: Object, flags: int, iova: int, length: int, page_size: int, bitmap: bytearray) -> None:
    """IOMMU_HWPT_GET_DIRTY_BITMAP: bits are added to those of the bitmap, whole words of 64 bits."""
    held = ffi.from_buffer("uint64_t[]", bitmap, require_writable=True)
    given = {"flags": flags, "iova": iova, "length": length, "page_size": page_size, "data": address(held)}
    command = ffi.new("struct iommu_hwpt_get_dirty_bitmap *", given)
    _check(_object_ioctl(hwpt, "IOMMU_HWPT_GET_DIRTY_BITMAP", command, "hwpt_id"), "IOMMU_HWPT_GET_DIRTY_BITMAP")


def runs(bitmap: bytearray, at: int = 0, most: int = 1024) -> list[int]:
    """Runs of set bits in whole words of 64, from a bit on: the first and the last bit of each, one after the other."""
    found = ffi.new("uint64_t[]", 2 * most)
    words = ffi.from_buffer("uint64_t[]", bitmap)
    count = lib.pyiommufd_runs(words, len(words), at, found, most)
    return cast("list[int]", ffi.unpack(found, 2 * count)) if count else []


def get_hw_info(device: Object, data_type: int | None) -> tuple[int, int, int, bytes]:
    """IOMMU_GET_HW_INFO: data type, width of PASIDs in bits, capabilities, and the IOMMU driver's own data."""
    room = 256
    typed = {} if data_type is None else {"flags": uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE, "in_data_type": data_type}
    while True:
        data = ffi.new("char[]", room)
        command = ffi.new("struct iommu_hw_info *", {"data_len": room, "data_uptr": address(data), **typed})
        _check(_object_ioctl(device, "IOMMU_GET_HW_INFO", command, "dev_id"), "IOMMU_GET_HW_INFO")
        if command.data_len <= room:
            width, length = int(command.out_max_pasid_log2), int(command.data_len)
            return int(command.out_data_type), width, int(command.out_capabilities), bytes(ffi.buffer(data, length))
        room = int(command.data_len)


def ioas_iova_ranges(ioas: Object) -> tuple[list[tuple[int, int]], int]:
    """IOMMU_IOAS_IOVA_RANGES: (start, inclusive last) of each range, and the alignment in bytes."""
    room = 16
    while True:
        ranges = ffi.new("struct iommu_iova_range[]", room)
        given = {"num_iovas": room, "allowed_iovas": address(ranges)}
        command = ffi.new("struct iommu_ioas_iova_ranges *", given)
        result = _object_ioctl(ioas, "IOMMU_IOAS_IOVA_RANGES", command, "ioas_id")
        if result == 0:
            found = [(int(ranges[i].start), int(ranges[i].last)) for i in range(command.num_iovas)]
            return found, int(command.out_iova_alignment)
        # EMSGSIZE: there are more than that by now, and the kernel has said how many.
        if result != -errno.EMSGSIZE or command.num_iovas <= room:
            _check(result, "IOMMU_IOAS_IOVA_RANGES")
        room = int(command.num_iovas)


def bind(cdev: File, device: Object, owner: File, token: bytes | None) -> None:
    """VFIO_DEVICE_BIND_IOMMUFD: the device is there, and its fd is the owner's, which was the cdev's.

    token: 16 bytes, or None.
    """
    given = ffi.NULL if token is None else ffi.from_buffer(token)
    _check(lib.pyiommufd_bind(_c(cdev), device, _c(owner), given), "VFIO_DEVICE_BIND_IOMMUFD")


def attach(cdev: File, table: Object, pasid: int | None, group_on: Cell, attached: Cell) -> None:
    """VFIO_DEVICE_ATTACH_IOMMUFD_PT: group_on becomes the table's id (``uint32_t``), and attached 1 (``int``).

    Not the id that the kernel writes back: that of an automatic page table is given to another object at once after the
    detach.
    """
    result = lib.pyiommufd_attach(_c(cdev), table, -1 if pasid is None else pasid, group_on, attached)
    _check(result, "VFIO_DEVICE_ATTACH_IOMMUFD_PT")


def detach(cdev: File, pasid: int | None, attached: Cell) -> None:
    """VFIO_DEVICE_DETACH_IOMMUFD_PT: attached becomes 0."""
    result = lib.pyiommufd_detach(_c(cdev), -1 if pasid is None else pasid, attached)
    _check(result, "VFIO_DEVICE_DETACH_IOMMUFD_PT")
