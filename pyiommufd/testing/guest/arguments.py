"""What `Guest` and the `guest` marker of pytest are given: checked before anything is started."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pyiommufd.printable import shortened
from pyiommufd.testing.guest.machine import (
    GuestDevice,
    RawDevice,
    check_device,
    check_iommu,
    device_arguments,
)

LEAST_MEMORY = 64
"""MiB; the guest's programs and its own files take as much."""


def check_arguments(caller: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as plain values: lists as tuples, paths as strings, strings among the devices as `RawDevice`.

    Args:
        caller: Whose arguments they are, for the texts of errors: ``Guest``, or ``guest`` for the marker.
        given: Arguments of `Guest`.

    Raises:
        TypeError, ValueError: One is not what it has to be; the text names it.
    """
    result = {}
    for name, value in given.items():
        try:
            result[name] = _CHECKS[name](value)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{caller}({name}={shortened(repr(value))}): {error}") from None
    return result


def _path(value: object, wanted: str) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise TypeError(f"a string is wanted, {wanted}")
    return path


def _optional(check: Callable[[Any], Any], value: object) -> Any:
    return None if value is None else check(value)


def _tuple(value: object, example: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"a list is wanted, such as {example}")
    return tuple(value)


def _strings(value: object, example: str) -> tuple[str, ...]:
    strings = _tuple(value, example)
    for one in strings:
        if not isinstance(one, str):
            raise TypeError(f"a list of strings is wanted, such as {example}; {one!r:.60} is none")
    return strings


def _paths(value: object) -> tuple[str, ...]:
    return tuple(_path(one, "a path, for each") for one in _tuple(value, "['/srv']"))


def _devices(value: object) -> tuple[GuestDevice, ...]:
    devices = tuple(RawDevice(one) if isinstance(one, str) else one for one in _tuple(value, "[Edu()]"))
    for one in devices:
        check_device(one)
    device_arguments(devices)  # what a device was itself given is seen by this
    return devices


def _whole(value: Any, least: int, what: str) -> int:
    wanted = f"{what} is wanted, {least} or more"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(wanted) from None
    if isinstance(value, bool):
        raise TypeError(wanted)
    if number < least:
        raise ValueError(wanted)
    return number


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number of seconds is wanted")
    if not 0 < value < math.inf:
        raise ValueError("a positive number of seconds is wanted")
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("True or False is wanted")
    return value


_FOLDER = partial(_optional, partial(_path, wanted="the path of a folder"))
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "iommu": check_iommu,
    "devices": partial(_optional, _devices),
    "kernel": partial(_optional, partial(_path, wanted="a path or a version such as '6.12'")),
    "qemu": partial(_optional, partial(_path, wanted="a path or the name of a program")),
    "memory": partial(_whole, least=LEAST_MEMORY, what="a whole number of MiB"),
    "cpus": partial(_whole, least=1, what="a whole number"),
    "kernel_arguments": partial(_strings, example="['iommufd.allow_unsafe_interrupts=1']"),
    "qemu_arguments": partial(_strings, example="['-device', 'qemu-xhci']"),
    "folder": _FOLDER,
    "results": _FOLDER,
    "read_only": _paths,
    "boot_timeout": _seconds,
    "accelerator": partial(_optional, partial(_path, wanted="such as 'kvm'")),
    "ports": partial(_strings, example="['name']"),
    "trace": _bool,
}
