"""What a guest's processors read from and wrote to the registers of its devices, as QEMU traced it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

EVENTS = ("memory_region_ops_read", "memory_region_ops_write")
"""QEMU's names of the trace events; both exist since 2.0."""

# QEMU 7.2 puts the process and the time in front: `1234@1700000000.123456:memory_region_ops_…`.
_LINE = re.compile(
    r"(?:\d+@(?P<time>\d+\.\d+):)?memory_region_ops_(?P<kind>read|write) cpu (?P<cpu>-?\d+) mr (?P<region>\S+) "
    r"addr (?P<address>0x[0-9a-f]+) value (?P<value>0x[0-9a-f]+) size (?P<size>\d+) name '(?P<name>[^']*)'"
)
_RANGE = re.compile(r"^\s*(?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}) \(prio .*?\): (?P<name>.+?)(?: \[disabled\])?$")


@dataclass(frozen=True, slots=True)
class RegisterAccess:
    """One access of a processor to a device, as the device saw it.

    Attributes:
        kind: read or write.
        address: The guest-physical address, or the port number.
        offset: The same in bytes from the start of the region, where the region is mapped now; else None.
        size: Bytes.
        value: What was read or written.
        region: QEMU's name of the region, such as ``edu-mmio``.
        cpu: The processor; -1 for what was no processor.
    """

    kind: Literal["read", "write"]
    address: int
    offset: int | None
    size: int
    value: int
    region: str
    cpu: int


def parse_ranges(mtree: str) -> dict[str, list[range]]:
    """Where each region is, from what the monitor's ``info mtree`` prints."""
    result: dict[str, list[range]] = {}
    for line in mtree.splitlines():
        if match := _RANGE.match(line):
            found = range(int(match["start"], 16), int(match["end"], 16) + 1)
            known = result.setdefault(match["name"], [])
            if found not in known:
                known.append(found)
    return result


def parse_trace(
    lines: Iterable[str], ranges: Mapping[str, list[range]], *, region: str | None = None
) -> Iterator[RegisterAccess]:
    """The accesses, in the order in which they happened.

    Args:
        lines: Of QEMU's log.
        ranges: See `parse_ranges`.
        region: Only those of this region; None: all.
    """
    for line in lines:
        if region is not None and region not in line:
            continue
        match = _LINE.match(line)
        if match is None or (region is not None and match["name"] != region):
            continue
        address = int(match["address"], 16)
        found = next((place for place in ranges.get(match["name"], ()) if address in place), None)
        yield RegisterAccess(
            kind="read" if match["kind"] == "read" else "write",
            address=address,
            offset=None if found is None else address - found.start,
            size=int(match["size"]),
            value=int(match["value"], 16),
            region=match["name"],
            cpu=int(match["cpu"]),
        )
