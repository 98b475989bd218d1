"""From a request and an errno to what may be behind it, for those who have no exception in hand."""

from __future__ import annotations

import errno as errno_module
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pyiommufd.diagnose.attach import ATTACH
from pyiommufd.diagnose.bind import BIND
from pyiommufd.diagnose.device_requests import DEVICE
from pyiommufd.diagnose.mapping_rows import MAPPING
from pyiommufd.diagnose.migration import MIGRATION
from pyiommufd.diagnose.node import NODES, open_cdev_causes
from pyiommufd.diagnose.objects import OBJECTS
from pyiommufd.errors import Cause
from pyiommufd.host.checks.lacks import NOT_COVERED, no_iommu, no_iommufd, no_noiommu_mode, no_noiommu_node
from pyiommufd.host.claims.step_rows import STEPS
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.mdev import MDEV
from pyiommufd.host.rows import Causes, Row, Rows, Subject, causes_found
from pyiommufd.nearest import did_you_mean

_OPEN = "open"
_OF_DRIVERS = {request for request, _ in (*STEPS, *MDEV)}
_OTHER_NAMES = {"EWOULDBLOCK": errno_module.EAGAIN, "EOPNOTSUPP": errno_module.EOPNOTSUPP, "ENOTSUPP": 524}
_FAMILIES = ("VFIO_DEVICE_", "VFIO_", "IOMMU_")
_WITHOUT_ROWS = (
    "VFIO_DEVICE_DETACH_IOMMUFD_PT", "IOMMU_IOAS_ALLOC", "IOMMU_FAULT_QUEUE_ALLOC",
)  # fmt: skip
_OF_MANY = {
    errno_module.ENOTTY: (
        Row("this kernel does not know the request", "use a newer kernel: pyiommufd caps shows what this one has"),
    ),
    errno_module.EOPNOTSUPP: (
        Row("this kernel does not know a flag, or a field that was to be zero", "use a newer kernel"),
    ),
    errno_module.E2BIG: (Row("this kernel's structure is shorter, and what it lacks was not zero", "leave that out"),),
    errno_module.ENOENT: (Row("there is no object of that id, or it is of another type", "give one that is open"),),
    errno_module.EFAULT: (Row("a given pointer is invalid", "give the address of valid memory"),),
    errno_module.ENOMEM: (Row("the kernel has too little memory", "try again with less"),),
    errno_module.EINTR: (Row("a signal interrupted the request", "try again"),),
    errno_module.EBADF: (Row("the fd is closed", "give an open one"),),
}  # fmt: skip


@cache
def table() -> Rows:
    """Every row: the reasons by request and errno."""
    return {**NODES, **BIND, **ATTACH, **MAPPING, **OBJECTS, **DEVICE, **MIGRATION, **STEPS, **MDEV}


def requests() -> tuple[str, ...]:
    """Every request that can be explained, under the kernel's names.

    Of requests by files these are ``open``, ``sysfs bind`` and ``sysfs unbind``, ``mdev create`` and ``mdev remove``.
    """
    return (*dict.fromkeys(request for request, _ in table()), *_WITHOUT_ROWS)


def find_request(text: str) -> str:
    """The request that is meant: its name in any case, or some words of it.

    These may be in other names too where each of them has all of it: ``map`` is ``IOMMU_IOAS_MAP``, though there is
    ``IOMMU_IOAS_MAP_FILE``.

    Raises:
        ValueError: None is, or more than one; the message lists them.
    """
    wanted = re.sub(r"[\s-]+", "_", text.strip().upper())
    names = {name.upper().replace(" ", "_"): name for name in requests()}
    if wanted in names:
        return names[wanted]
    ioctls = [name for key, name in names.items() if key.startswith(_FAMILIES)]
    found = [name for name in ioctls if wanted and f"_{wanted}_" in f"_{name}_"]
    for name in found:
        own = next(name.removeprefix(family) for family in _FAMILIES if name.startswith(family))
        if all(f"_{own}_" in f"{other}_" for other in found):
            return name
    if found:
        raise ValueError(f"{text!r} is ambiguous: it names {', '.join(found)}")
    near = did_you_mean(wanted, requests())
    raise ValueError(f"there is no request {text!r}" + (near or f"; known are {', '.join(requests())}"))


def find_errno(text: str) -> int:
    """The errno that is meant, by name or number.

    Raises:
        ValueError: There is none.
    """
    wanted = text.strip().upper()
    if wanted.lstrip("-").isdigit():
        code = abs(int(wanted))
    else:
        code = next((number for number, name in errno_module.errorcode.items() if name == wanted), 0)
        code = code or _OTHER_NAMES.get(wanted, 0)
    if not code:
        near = did_you_mean(wanted, [*errno_module.errorcode.values(), *_OTHER_NAMES])
        raise ValueError(f"{text!r} is not an errno{near or '; give a name such as EINVAL, or a number'}")
    return code


def explain(request: str, errno: int, device: HostDevice | None = None) -> tuple[Cause, ...]:
    """What may be behind a refused request, the likeliest first.

    With a device, what this machine shows now comes first, with its evidence, that it has no IOMMU or no iommufd before
    all else; then what cannot be seen from outside. What is not so is left out. By now whatever it was may be over: an
    exception's `causes` were found at once.

    Args:
        request: The request, as `find_request` takes it.
        errno: The errno, as in `errno`.
        device: What it was about.

    Raises:
        ValueError: There is no such request.
    """
    return (seen := look(request, errno, device)).found + seen.possible


def look(request: str, errno: int, device: HostDevice | None = None) -> Causes:
    """As `explain`, with those that show, those that may be, and those that this machine rules out apart.

    Without a device all of them may be.

    Raises:
        ValueError: There is no such request.
    """
    request = find_request(request)
    rows = table().get((request, errno), _OF_MANY.get(errno, ()))
    if device is None:
        return Causes(possible=tuple(row.general for row in rows))
    is_open = request == _OPEN
    lacks = () if request in _OF_DRIVERS else tuple(_lacks(device, is_open))
    seen = _look_at_node(rows, errno, device) if is_open else causes_found(rows, Subject(device, device.group))
    return seen._replace(found=lacks + seen.found)


def _lacks(device: HostDevice, is_open: bool) -> Iterator[Cause]:
    """What the machine lacks for any request of iommufd's or VFIO's about a device."""
    without = None
    # One that is on vfio all the same can be bound, and works.
    if device.without_iommu and not device.on_vfio:
        if no_noiommu_mode() is not None or no_noiommu_node(device) is not None:
            without = no_iommu() or NOT_COVERED
        elif not is_open:  # which says this itself
            yield from open_cdev_causes(errno_module.ENOENT, device)
    for lack in (without, no_iommufd()):
        if lack is not None:
            yield Cause(lack.summary, lack.evidence, lack.fix)


def _look_at_node(rows: tuple[Row, ...], errno: int, device: HostDevice) -> Causes:
    """The causes of a node that could not be opened."""
    found, general = open_cdev_causes(errno, device), tuple(row.general for row in rows)
    if device.vfio_cdev is None:
        # Where there is no node, nothing else is wrong with it; the first row for ENOENT says this.
        return Causes(found, ruled_out=general[1:] if errno == errno_module.ENOENT else general)
    if errno == errno_module.ENOENT:
        is_there = Path(device.vfio_cdev).exists()
        return Causes(ruled_out=general) if is_there else Causes(found, ruled_out=general[:1])
    # The first row for EPERM is about devices without an IOMMU.
    ruled_out = general[:1] if errno == errno_module.EPERM and not device.without_iommu else ()
    possible = general[len(ruled_out) :]
    if errno in (errno_module.EACCES, errno_module.EPERM) and os.access(device.vfio_cdev, os.R_OK | os.W_OK):
        return Causes(possible=possible, ruled_out=ruled_out)  # another user asked
    # Of EBUSY and EACCES the only row says in general what was found.
    restated = found and errno in (errno_module.EBUSY, errno_module.EACCES)
    return Causes(found, () if restated else possible, ruled_out)


def general_causes(request: str, errno: int) -> tuple[Cause, ...]:
    """What the kernel may mean by an errno, with nothing seen of this machine; for exceptions without better."""
    rows = table().get((request, errno))
    if rows is None and request.startswith(("IOMMU_", "VFIO_")):
        rows = _OF_MANY.get(errno)
    return tuple(row.general for row in rows or ())
