"""What accesses of mapped registers cost, by the guest's instruction clock.

`figures` starts the guest; run as a program, there, this measures: registers FOLDER-OF-THE-EXTENSION.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cffi import FFI

from pyiommufd import IOMMUFD, DMABuffer, find_device, list_devices, plan_claim
from pyiommufd.testing import RawDevice
from pyiommufd.testing.drivers import edu
from tests.benchmarks.figure import Figure
from tests.benchmarks.measuring import in_guest

DISPLAY = "1234:1111"
"""QEMU's bochs-display, whose region 0 is memory."""
SIZE = 1 << 20
ROUNDS = 5000
COPIES = 20

DECLARATION = """
uint32_t bare_read32(uint64_t base, uint64_t offset);
void bare_write32(uint64_t base, uint64_t offset, uint32_t value);
uint64_t now(void);
uint64_t mapped(int fd, uint64_t offset, uint64_t length);
void unmapped(uint64_t base, uint64_t length);
uint64_t copies(void *to, const void *from, uint64_t length, int rounds);
uint64_t wide_copies(void *to, const void *from, uint64_t length, int rounds);
"""
SOURCE = """
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static uint32_t bare_read32(uint64_t base, uint64_t offset)
{
    return *(volatile uint32_t *)(uintptr_t)(base + offset);
}
static void bare_write32(uint64_t base, uint64_t offset, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(base + offset) = value;
}
static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}
static uint64_t mapped(int fd, uint64_t offset, uint64_t length)
{
    return (uint64_t)(uintptr_t)mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
}
static void unmapped(uint64_t base, uint64_t length)
{
    munmap((void *)(uintptr_t)base, length);
}
static uint64_t copies(void *to, const void *from, uint64_t length, int rounds)
{
    uint64_t start = now();

    while (rounds--) {
        memcpy(to, from, length);
        __asm__ __volatile__("" ::: "memory");
    }
    return now() - start;
}
/* By accesses of 8 bytes, as a driver copies that promises no wider ones. */
static uint64_t wide_copies(void *to, const void *from, uint64_t length, int rounds)
{
    uint64_t start = now();

    while (rounds--)
        for (uint64_t at = 0; at < length / 8; at++)
            ((volatile uint64_t *)to)[at] = ((volatile const uint64_t *)from)[at];
    return now() - start;
}
"""


def build(folder: str) -> None:
    """Compile what the library is compared with."""
    ffi = FFI()
    ffi.cdef(DECLARATION)
    ffi.set_source("bare", SOURCE, extra_compile_args=["-O2"])
    ffi.compile(folder)


def load(folder: str) -> Any:
    """What was compiled."""
    (file,) = Path(folder).glob("bare*.so")
    spec = importlib.util.spec_from_file_location("bare", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A loop for each: a call of what is to be called would be a good part of both sides.


def reads(read32: Callable[[int], int]) -> int:
    """Nanoseconds of so many reads by the library."""
    start = time.monotonic_ns()
    for _ in range(ROUNDS):
        read32(0)
    return time.monotonic_ns() - start


def bare_reads(read32: Callable[[int, int], int], base: int) -> int:
    """Nanoseconds of the same by bare calls."""
    start = time.monotonic_ns()
    for _ in range(ROUNDS):
        read32(base, 0)
    return time.monotonic_ns() - start


def writes(write32: Callable[[int, int], None]) -> int:
    """Nanoseconds of so many writes by the library."""
    start = time.monotonic_ns()
    for _ in range(ROUNDS):
        write32(4, 7)
    return time.monotonic_ns() - start


def bare_writes(write32: Callable[[int, int, int], None], base: int) -> int:
    """Nanoseconds of the same by bare calls."""
    start = time.monotonic_ns()
    for _ in range(ROUNDS):
        write32(base, 4, 7)
    return time.monotonic_ns() - start


def copies(copy: Callable[[int, DMABuffer], object], memory: DMABuffer) -> int:
    """Nanoseconds of so many copies by the library."""
    copy(0, memory)
    start = time.monotonic_ns()
    for _ in range(COPIES):
        copy(0, memory)
    return time.monotonic_ns() - start


def figures() -> Iterator[Figure]:
    """One access, and copies."""
    with tempfile.TemporaryDirectory() as folder:
        build(folder)
        measured = in_guest("registers", folder, devices=["edu", RawDevice("bochs-display")], read_only=[folder])
    names = {
        "read32": ("read32 of a mapped register", 1.5, "x bare cffi call"),
        "write32": ("write32 of a mapped register", 1.5, "x bare cffi call"),
        "readinto": ("Window.readinto of 1 MiB", 1.05, "x memcpy by C"),
        "write": ("Window.write of 1 MiB", 1.05, "x memcpy by C"),
        "readinto, 8": ("Window.readinto of 1 MiB", None, "x C by 8 bytes"),
    }
    for name, (what, goal, unit) in names.items():
        yield Figure(what, measured[name], goal, unit)


def main() -> None:
    """Measure."""
    bare = load(sys.argv[1])
    gc.disable()
    found = {}
    device_name = next(one.name for one in list_devices("pci") if one.device_id == edu.DEVICE_ID)
    with plan_claim([device_name, find_device(DISPLAY)]).apply(), IOMMUFD() as iommufd:
        device = iommufd.bind(device_name)
        region = device.region(0)
        registers = region.map()
        base = bare.lib.mapped(device.fileno(), region.file_offset, region.size)
        found["read32"] = reads(registers.read32) / bare_reads(bare.lib.bare_read32, base)
        found["write32"] = writes(registers.write32) / bare_writes(bare.lib.bare_write32, base)
        bare.lib.unmapped(base, region.size)
        display = iommufd.bind(find_device(DISPLAY))
        region = display.region(0)
        window = region.map(0, SIZE)
        memory = DMABuffer(SIZE)
        pointer = bare.ffi.from_buffer(memory)
        base = bare.lib.mapped(display.fileno(), region.file_offset, SIZE)
        pixels = bare.ffi.cast("void *", base)
        out, into = (pointer, pixels), (pixels, pointer)
        for to, start in (out, into):
            bare.lib.copies(to, start, SIZE, 1)
        took = copies(window.readinto, memory)
        found["readinto"] = took / bare.lib.copies(*out, SIZE, COPIES)
        found["readinto, 8"] = took / bare.lib.wide_copies(*out, SIZE, COPIES)
        found["write"] = copies(window.write, memory) / bare.lib.copies(*into, SIZE, COPIES)
        bare.lib.unmapped(base, SIZE)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
