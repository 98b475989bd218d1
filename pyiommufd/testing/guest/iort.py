"""The ACPI IORT of an Arm machine: edited so that Linux's SMMUv3 driver offers virtual IOMMUs and nested translation.

The driver does so where memory stays coherent whatever a guest's page tables say of it. For QEMU's SMMU neither S2FWB
nor CANWBS (Arm DEN0049, a memory access flag of root complexes) says so, though it is. That flag is set in a copy of
the machine's table, which the kernel takes from the initial RAM disk in place of the firmware's (Linux,
Documentation/admin-guide/acpi/initrd_table_override.rst).

A table belongs to one machine: Linux dies of one that names what is not there. Each is read in a boot of its own,
edited, and kept in the cache under what it depends on.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

PLACE = "/sys/firmware/acpi/tables/IORT"
"""Where the guest's kernel shows the table that it uses."""

IN_INITRAMFS = "kernel/firmware/acpi/IORT.aml"
"""Where the kernel looks for one in place of the firmware's, in an uncompressed archive before the initial files."""

# A table's header: signature, length, revision, checksum, OEM id, OEM table id, OEM revision, creator and its revision.
_HEADER = struct.Struct("<4sIBB6s8sIII")
# Of the IORT: the number of nodes and where the first is.
_NODES = struct.Struct("<II")
# A node's header: type, length, revision, identifier, the number of mappings and where they are.
_NODE = struct.Struct("<BHBIII")
_ROOT_COMPLEX, _SMMU_V3 = 2, 4
# Of a root complex, from its start: the last of its 8 bytes of memory properties are flags.
_MEMORY_FLAGS = _NODE.size + 7
_CANWBS = 1 << 2

# Devices that are no bridges and have no virtual functions: what the firmware numbers is the same without them.
_PLAIN = re.compile(r"(edu|e1000e|ivshmem-plain|nec-usb-xhci|virtio-(rng|blk|net|9p|serial)-pci)(,|$)")


def offer_nesting(table: bytes) -> bytes:
    """The table with CANWBS set for every root complex; a later revision, so that the kernel prefers it.

    Raises:
        ValueError: It is no whole IORT, or of a machine without a root complex or an SMMUv3.
    """
    nodes = list(_nodes(table))
    kinds = [kind for kind, _ in nodes]
    for kind, name in ((_ROOT_COMPLEX, "root complex"), (_SMMU_V3, "SMMUv3")):
        if kind not in kinds:
            raise ValueError(f"the machine's IORT has no {name}")
    result = bytearray(table)
    for kind, start in nodes:
        if kind == _ROOT_COMPLEX:
            result[start + _MEMORY_FLAGS] |= _CANWBS
    signature, length, revision, _, oem, oem_table, oem_revision, *creator = _HEADER.unpack_from(table)
    _HEADER.pack_into(result, 0, signature, length, revision, 0, oem, oem_table, oem_revision + 1, *creator)
    result[9] = -sum(result) & 0xFF  # the checksum: all bytes add up to 0
    return bytes(result)


def _nodes(table: bytes) -> Iterator[tuple[int, int]]:
    """Each node's type and where it starts.

    Raises:
        ValueError: The table is not whole.
    """
    if len(table) < _HEADER.size + _NODES.size or table[:4] != b"IORT":
        raise ValueError("this is no IORT")
    if len(table) != _HEADER.unpack_from(table)[1] or sum(table) & 0xFF:
        raise ValueError("the IORT is not whole: its length or checksum is wrong")
    count, start = _NODES.unpack_from(table, _HEADER.size)
    for number in range(count):
        kind, length = _NODE.unpack_from(table, start)[:2] if start + _NODE.size <= len(table) else (0, 0)
        # All of a root complex's memory properties are in its node.
        least = _MEMORY_FLAGS + 1 if kind == _ROOT_COMPLEX else _NODE.size
        if length < least or start + length > len(table):
            raise ValueError(f"node {number} of the IORT at {start:#x} is not whole")
        yield kind, start
        start += length


def table_key(qemu: str, firmware: Path, machine: Sequence[str], devices: Sequence[str], more: Sequence[str]) -> str:
    """What a machine's IORT depends on, as the name of its cache entry.

    Args:
        qemu: The QEMU's version.
        firmware: The UEFI, which numbers the buses.
        machine: The QEMU arguments of the machine itself.
        devices: Those of the devices under test.
        more: Those that are the user's own.
    """
    pairs = zip(devices[::2], devices[1::2], strict=True)
    shaping = [value for option, value in pairs if option == "-device" and not _PLAIN.match(value)]
    parts = [qemu, hashlib.sha256(firmware.read_bytes()).hexdigest(), *machine, "", *shaping, "", *more]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


class TableCache:
    """Edited tables, kept by `table_key`.

    Args:
        cache: The `cache_folder`.
    """

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "iort"

    def get(self, key: str) -> bytes | None:
        """The table kept under the key, if it is there and whole."""
        try:
            table = self._path(key).read_bytes()
            list(_nodes(table))
        except (OSError, ValueError):
            return None
        return table

    def put(self, key: str, table: bytes) -> None:
        """Keep a table."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{key}.{os.getpid()}"
        temporary.write_bytes(table)
        temporary.replace(self._path(key))

    def drop(self, key: str) -> None:
        """Forget the table kept under the key, if there is one."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.aml"
