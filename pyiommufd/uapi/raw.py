"""Any ioctl with any memory: for what the rest of the library refuses, or does not offer.

Malformed commands, sizes of the future, pieces of pages, and the container ioctls of VFIO that an iommufd answers::

    command = raw.struct("iommu_ioas_map", ioas_id=ioas.id, user_va=address, length=512, flags=flags)
    raw.ioctl(iommufd.fileno(), uapi.IOMMU_IOAS_MAP, command)
    print(command.iova)

Only the kernel judges what is asked here. Addresses go to it as they are: their memory has to stay as long as the
kernel uses it, for a mapping until it is unmapped. Of what is made or destroyed in this way the library's objects know
nothing.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from pyiommufd._uapi import ffi, lib
from pyiommufd.errors import ioctl_error

_SIZE_FIELDS = ("size", "argsz")


class Struct:
    """One of the kernel's structs, with its fields as attributes. Made by `struct`.

    Fields are read and set as integers; those that are not integers can be read from `memory` only.

    Attributes:
        memory: All of it, the tail included, as a writable `memoryview` of bytes.
    """

    __slots__ = ("_fields", "_type", "memory")

    # Which fields a struct has, only C knows: Any.
    _fields: Any
    _type: Any
    memory: memoryview

    def __init__(self, name: str, tail: bytes, values: dict[str, int]) -> None:
        try:
            kind = ffi.typeof(f"struct {name}")
            length = ffi.sizeof(kind)
        except (ffi.error, TypeError, ValueError):
            raise ValueError(f"there is no struct {name!r} in the declarations of pyiommufd.uapi") from None
        owner = ffi.new("char[]", length + len(tail))
        set_attribute = object.__setattr__
        set_attribute(self, "_type", kind)
        set_attribute(self, "_fields", ffi.cast(ffi.typeof(f"struct {name} *"), owner))
        set_attribute(self, "memory", memoryview(ffi.buffer(owner)))
        self.memory[length:] = tail
        first = kind.fields[0][0] if kind.fields else ""
        if first in _SIZE_FIELDS:
            setattr(self, first, length)
        for field, value in values.items():
            setattr(self, field, value)

    def __getattr__(self, field: str) -> int:
        try:
            value = getattr(self._fields, field)
        except AttributeError:
            raise AttributeError(f"{self._type.cname} has no field {field!r}") from None
        if not isinstance(value, int):
            raise AttributeError(f"the field {field!r} is not an integer: read it from memory")
        return value

    def __setattr__(self, field: str, value: int) -> None:
        try:
            setattr(self._fields, field, operator.index(value))
        except AttributeError:
            raise AttributeError(f"{self._type.cname} has no field {field!r}") from None
        except OverflowError:
            raise ValueError(f"{value} does not fit the field {field!r}") from None

    def __len__(self) -> int:
        """Its length in bytes, without the tail."""
        return int(ffi.sizeof(self._type))

    def end_of(self, field: str) -> int:
        """How many bytes of the struct a field and those before it take.

        Raises:
            AttributeError: It has no such field.
        """
        for name, description in self._type.fields:
            if name == field:
                return int(description.offset + ffi.sizeof(description.type))
        raise AttributeError(f"{self._type.cname} has no field {field!r}")

    @property
    def address(self) -> int:
        """Its address in memory."""
        return int(ffi.cast("uintptr_t", self._fields))

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name}={value:#x}"
            for name, _ in self._type.fields
            if name and isinstance(value := getattr(self._fields, name), int)
        )
        return f"<{self._type.cname} {values}>"


def struct(name: str, /, *, tail: bytes = b"", **fields: int) -> Struct:
    """Make one of the structs that iommufd.h and vfio.h of `pyiommufd.uapi` declare.

    Args:
        name: Its name without the word ``struct``, such as ``iommu_ioas_map``.
        tail: Bytes behind it, as a struct of a later kernel would have, or for its flexible array.
        fields: What the fields hold; the rest is 0, but for the first where that is ``size`` or ``argsz``: it holds the
            struct's own length.

    Raises:
        ValueError: There is no such struct, or a value does not fit.
        AttributeError: It has no such field.
    """
    return Struct(name, tail, fields)


def ioctl(fd: int, request: int, argument: Any = 0) -> int:
    """Issue an ioctl.

    Args:
        fd: Of any file.
        request: The request's number, such as `pyiommufd.uapi.IOMMU_DESTROY`.
        argument: A `Struct`; a writable buffer, whose address the kernel is given; or an integer, given as it is: 0 for
            NULL, a plain value, an address.

    Returns:
        What the call returned, 0 or more.

    Raises:
        IoctlError: The kernel refused.
        TypeError, BufferError: The argument is none of these.
        ValueError: A number does not fit.
    """
    pointer: Any
    if isinstance(argument, Struct):
        pointer = argument._fields
    elif isinstance(argument, int):
        if not 0 <= argument <= 0xFFFF_FFFF_FFFF_FFFF:
            raise ValueError(f"{argument} does not fit the argument of an ioctl")
        pointer = ffi.cast("void *", argument)
    else:
        pointer = ffi.from_buffer("char[]", argument, require_writable=True)
    try:
        result = int(lib.pyiommufd_raw_ioctl(operator.index(fd), operator.index(request), pointer))
    except OverflowError as error:
        raise ValueError(f"fd {fd}, request {request}: {error}") from None
    if result < 0:
        raise ioctl_error(_name_of(request), -result)
    return result


@functools.cache
def _name_of(request: int) -> str:
    """What the kernel calls a request. Numbers of VFIO are shared between kinds of files."""
    names = [name for name in dir(lib) if name.startswith(("IOMMU_", "VFIO_")) and getattr(lib, name) == request]
    return " or ".join(names) or f"ioctl {request:#x}"


def address_of(buffer: Any) -> int:
    """The address of the memory of a buffer, which has to outlive its use.

    Raises:
        TypeError, BufferError: It has no contiguous memory.
    """
    return int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", buffer)))
