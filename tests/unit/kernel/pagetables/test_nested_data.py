"""Data for IOMMU drivers: their bytes are those of the kernel's structs, and what does not fit is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pyiommufd import AMDGuest, RawData, SMMUv3Stage1, TypedData, VTdStage1, uapi
from pyiommufd._uapi import ffi


def size(struct_name: str) -> int:
    return int(ffi.sizeof(f"struct {struct_name}"))


def test_a_stream_table_entry_is_two_words() -> None:
    data = SMMUv3Stage1((0x0102030405060708, 0x1112131415161718))
    assert bytes(data) == bytes.fromhex("0807060504030201 1817161514131211")
    assert (data.type, len(bytes(data))) == (uapi.IOMMU_HWPT_DATA_ARM_SMMUV3, size("iommu_hwpt_arm_smmuv3"))
    assert repr(data) == "<SMMUv3Stage1 ste 0x102030405060708, 0x1112131415161718>"


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (VTdStage1(0x5000), 0),
        (VTdStage1(0x5000, 57, supervisor=True), uapi.IOMMU_VTD_S1_SRE),
        (VTdStage1(0x5000, access_flags=True, write_protect=True), uapi.IOMMU_VTD_S1_EAFE | uapi.IOMMU_VTD_S1_WPE),
    ],
)
def test_a_first_stage_of_vtd(data: VTdStage1, flags: int) -> None:
    assert len(bytes(data)) == size("iommu_hwpt_vtd_s1")
    assert struct.unpack("=2Q2I", bytes(data)) == (flags, 0x5000, data.address_width, 0)
    assert f", supervisor {data.supervisor}, " in repr(data)


def test_a_device_table_entry_is_four_words() -> None:
    data = AMDGuest(range(4))
    assert len(bytes(data)) == size("iommu_hwpt_amd_guest")
    assert struct.unpack("=4Q", bytes(data)) == (0, 1, 2, 3)


def test_raw_data_are_copied() -> None:
    memory = bytearray(b"abc")
    data = RawData(0xDEAD, memory)  # type: ignore[arg-type]
    memory[0] = 0
    assert bytes(data) == b"abc"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: SMMUv3Stage1((1,)), ValueError, "ste has 2 words of 64 bits, not 1"),
        (lambda: SMMUv3Stage1((1, 1 << 64)), ValueError, "a word of ste is a number of 64 bits"),
        (lambda: SMMUv3Stage1((1, -1)), ValueError, "a word of ste is a number of 64 bits"),
        (lambda: SMMUv3Stage1((1, 2.5)), TypeError, "a word of ste"),  # type: ignore[arg-type]
        (lambda: AMDGuest((1, 2, 3)), ValueError, "dte has 4 words"),
        (lambda: VTdStage1(-1), ValueError, "address is a number of 64 bits"),
        (lambda: VTdStage1(0, 1 << 32), ValueError, "address_width is a number of 32 bits"),
        (lambda: VTdStage1(0, supervisor=1), TypeError, "supervisor is True or False"),  # type: ignore[arg-type]
        (lambda: RawData(1 << 32, b""), ValueError, "type is a number of 32 bits"),
        (lambda: RawData(1, 5), TypeError, "memoryview"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_does_not_fit(make: Callable[[], TypedData], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
