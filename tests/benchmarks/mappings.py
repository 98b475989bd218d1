"""What mappings cost, as ratios to the same loop in C, by the guest's instruction clock.

`figures` starts the guest; run as a program, there, this measures: mappings LOOP-PROGRAM.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from pyiommufd import IOAS, IOMMUFD, DMABuffer, plan_claim, uapi
from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import in_guest

_MAP = struct.Struct("=IIIIQQQ")
_UNMAP = struct.Struct("=IIQQ")
_ACCESS = uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE


class Map(ctypes.Structure):
    """struct iommu_ioas_map."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("ioas_id", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("user_va", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("iova", ctypes.c_uint64),
    )


class Unmap(ctypes.Structure):
    """struct iommu_ioas_unmap."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("ioas_id", ctypes.c_uint32),
        ("iova", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
    )


def by_pyiommufd(ioas: IOAS, rounds: int) -> int:
    """The public API."""
    buffer = DMABuffer(4096)
    start = time.monotonic_ns()
    for _ in range(rounds):
        mapping = ioas.map(buffer)
        mapping.unmap()
    return time.monotonic_ns() - start


def by_fcntl(ioas: IOAS, rounds: int) -> int:
    """fcntl.ioctl and struct, as somebody would write it who has no library."""
    buffer = DMABuffer(4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    fd, ioas_id = ioas.iommufd.fileno(), ioas.id
    start = time.monotonic_ns()
    for _ in range(rounds):
        command = bytearray(_MAP.pack(_MAP.size, _ACCESS, ioas_id, 0, address, 4096, 0))
        fcntl.ioctl(fd, uapi.IOMMU_IOAS_MAP, command)
        iova = _MAP.unpack(command)[6]
        fcntl.ioctl(fd, uapi.IOMMU_IOAS_UNMAP, bytearray(_UNMAP.pack(_UNMAP.size, ioas_id, iova, 4096)))
    return time.monotonic_ns() - start


def by_ctypes(ioas: IOAS, rounds: int) -> int:
    """ctypes structures and libc's ioctl."""
    buffer = DMABuffer(4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    fd, ioas_id = ioas.iommufd.fileno(), ioas.id
    libc = ctypes.CDLL(None, use_errno=True)
    start = time.monotonic_ns()
    for _ in range(rounds):
        command = Map(ctypes.sizeof(Map), _ACCESS, ioas_id, 0, address, 4096, 0)
        if libc.ioctl(fd, uapi.IOMMU_IOAS_MAP, ctypes.byref(command)):
            raise OSError(ctypes.get_errno(), "IOMMU_IOAS_MAP")
        undo = Unmap(ctypes.sizeof(Unmap), ioas_id, command.iova, 4096)
        if libc.ioctl(fd, uapi.IOMMU_IOAS_UNMAP, ctypes.byref(undo)):
            raise OSError(ctypes.get_errno(), "IOMMU_IOAS_UNMAP")
    return time.monotonic_ns() - start


def by_c(ioas: IOAS, rounds: int, pieces: int = 1) -> int:
    """The loop in C, on the same address space."""
    fd = ioas.iommufd.fileno()
    command = [sys.argv[1], str(fd), str(ioas.id), str(rounds), str(pieces)]
    return int(subprocess.run(command, pass_fds=[fd], check=True, capture_output=True).stdout)


WAYS: dict[str, Callable[[IOAS, int], int]] = {
    "C": by_c,
    "pyiommufd": by_pyiommufd,
    "fcntl+struct": by_fcntl,
    "ctypes": by_ctypes,
}


def many(ioas: IOAS, rounds: int) -> int:
    """`map_many`, each time of pieces that the caller makes anew, and the unmap of them."""
    buffer = DMABuffer(PIECES * 4096)
    start = time.monotonic_ns()
    for _ in range(rounds):
        mappings = ioas.map_many(buffer, [(at, 4096, IOVA + at) for at in range(0, PIECES * 4096, 4096)])
        mappings.unmap()
    return time.monotonic_ns() - start


def many_given(ioas: IOAS, rounds: int) -> int:
    """`map_many` of pieces that are there, and the unmap of them."""
    buffer = DMABuffer(PIECES * 4096)
    pieces = [(at, 4096, IOVA + at) for at in range(0, PIECES * 4096, 4096)]
    start = time.monotonic_ns()
    for _ in range(rounds):
        ioas.map_many(buffer, pieces).unmap()
    return time.monotonic_ns() - start


DEVICE = "0000:00:01.0"
GOALS = {"no device": 3.4, "VT-d attached": 1.65}
ROUNDS = 2000
PIECES = 1000
IOVA = 0x1000_0000


def measure(ioas: IOAS) -> dict[str, float]:
    """Ratios to C of each way; one short run before, that nothing is measured for the first time."""
    gc.disable()
    for way in WAYS.values():
        way(ioas, 20)
    took = {name: way(ioas, ROUNDS) for name, way in WAYS.items()}
    for pieces in (many, many_given):
        pieces(ioas, 1)
    by_loop = by_c(ioas, 10, PIECES)
    return {name: took[name] / took["C"] for name in took if name != "C"} | {
        "pieces": many_given(ioas, 10) / by_loop,
        "pieces, which are listed anew each time": many(ioas, 10) / by_loop,
    }


def figures() -> Iterator[Figure]:
    """One map and one unmap of a page, by each way; and of many pages by one call."""
    for space, ratios in in_guest("mappings", sources=["loop.c"]).items():
        for name, ratio in ratios.items():
            if name.startswith("pieces"):
                goal = 1.05 if name == "pieces" else None
                yield Figure(f"map_many, unmap of {PIECES} {name}, {space}", ratio, goal, "x C")
            else:
                goal = GOALS[space] if name == "pyiommufd" else None
                yield Figure(f"map, unmap of 4 KiB, {space}: {name}", ratio, goal, "x C")


def main() -> None:
    """Measure without and with a device attached."""
    with plan_claim(DEVICE).apply(), IOMMUFD() as iommufd:
        device = iommufd.bind(DEVICE)
        ioas = iommufd.alloc_ioas()
        result = {"no device": measure(ioas)}
        device.attach(ioas)
        result["VT-d attached"] = measure(ioas)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
