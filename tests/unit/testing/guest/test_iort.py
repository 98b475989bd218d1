"""The IORT of an Arm machine: a table of QEMU's shape, edited and kept."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyiommufd.testing.guest.iort import TableCache, offer_nesting, table_key

ITS, ROOT_COMPLEX, SMMU_V3 = 0, 2, 4
FLAGS = 16 + 7
"""Of a root complex: the last byte of its memory properties."""


def node(kind: int, body: bytes) -> bytes:
    return struct.pack("<BHBIII", kind, 16 + len(body), 1, 0, 0, 0) + body


def iort(*nodes: bytes, signature: bytes = b"IORT") -> bytes:
    length = 48 + sum(map(len, nodes))
    header = struct.pack("<4sIBB6s8sIII", signature, length, 5, 0, b"BOCHS ", b"BXPC    ", 1, 0, 1)
    table = bytearray(header + struct.pack("<III", len(nodes), 48, 0) + b"".join(nodes))
    table[9] = -sum(table) & 0xFF
    return bytes(table)


COMPLEX = node(ROOT_COMPLEX, struct.pack("<IBHBII", 1, 0, 0, 3, 0, 0) + bytes(24))
WHOLE = iort(node(ITS, struct.pack("<II", 1, 0)), node(SMMU_V3, bytes(52)), COMPLEX)


def test_every_root_complex_gets_the_flag_and_the_table_stays_whole() -> None:
    edited = offer_nesting(iort(COMPLEX, node(SMMU_V3, bytes(52)), COMPLEX))
    first, second = 48, 48 + len(COMPLEX) + 68
    # The flags that were set stay.
    assert (edited[first + FLAGS], edited[second + FLAGS]) == (7, 7)
    assert sum(edited) & 0xFF == 0
    assert struct.unpack_from("<I", edited, 24) == (2,)
    changed = {n for n, (old, new) in enumerate(zip(offer_nesting(edited), edited, strict=True)) if old != new}
    assert changed == {9, 24}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"", "this is no IORT"),
        (iort(COMPLEX, signature=b"APIC"), "this is no IORT"),
        (WHOLE[:-1], "length or checksum"),
        (WHOLE[:60] + b"\xff" + WHOLE[61:], "length or checksum"),
        (iort(COMPLEX), "no SMMUv3"),
        (iort(node(SMMU_V3, b"")), "no root complex"),
        (iort(node(SMMU_V3, b""), node(ROOT_COMPLEX, bytes(7))), "node 1 of the IORT at 0x40 is not whole"),
        (iort(struct.pack("<BHBIII", SMMU_V3, 999, 1, 0, 0, 0)), "node 0 of the IORT at 0x30 is not whole"),
        (iort(struct.pack("<BHBIII", SMMU_V3, 0, 1, 0, 0, 0)), "node 0 of the IORT at 0x30 is not whole"),
    ],
)
def test_a_table_that_cannot_be_edited(table: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        offer_nesting(table)


def test_a_table_is_kept_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    cache = TableCache(tmp_path)
    assert cache.get("key") is None
    cache.put("key", WHOLE)
    assert cache.get("key") == WHOLE
    (file,) = (tmp_path / "iort").iterdir()
    file.write_bytes(WHOLE[:-4])
    assert cache.get("key") is None
    cache.drop("key")
    cache.drop("key")
    assert list((tmp_path / "iort").iterdir()) == []


def test_what_a_table_depends_on(tmp_path: Path) -> None:
    firmware = tmp_path / "firmware"
    firmware.write_bytes(b"1")
    port = ["-device", "pcie-root-port,id=rp1,chassis=1"]

    def key(*devices: str, qemu: str = "10.0", machine: str = "virt", more: tuple[str, ...] = ()) -> str:
        return table_key(qemu, firmware, ["-machine", machine], devices, more)

    plain = key()
    # What is no bridge is told from nothing neither by the firmware nor by the table.
    disk = ["-blockdev", "driver=file,node-name=disk1,filename=/x", "-device", "virtio-blk-pci,drive=disk1"]
    assert key("-device", "edu,bus=rp1", *disk) == plain
    others = [
        key(*port),
        key(*port, *port),
        key("-device", "igb"),
        key(qemu="10.1"),
        key(machine="virt,x"),
        key(more=("-x",)),
    ]
    firmware.write_bytes(b"2")
    assert len({plain, *others, key()}) == 8
