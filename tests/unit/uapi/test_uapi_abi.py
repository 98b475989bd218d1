"""The declarations in pyiommufd/uapi against facts stated elsewhere: nothing here is computed from them."""

from __future__ import annotations

import errno
import platform
import struct
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import uapi
from pyiommufd._uapi import ffi, lib

# The command's number in the low byte, ';' in the next; _IO() of most architectures adds nothing to that.
IOC_NONE = 1 << 29 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 0

IOMMUFD = {
    "IOMMU_DESTROY": 0x80,
    "IOMMU_IOAS_ALLOC": 0x81,
    "IOMMU_IOAS_ALLOW_IOVAS": 0x82,
    "IOMMU_IOAS_COPY": 0x83,
    "IOMMU_IOAS_IOVA_RANGES": 0x84,
    "IOMMU_IOAS_MAP": 0x85,
    "IOMMU_IOAS_UNMAP": 0x86,
    "IOMMU_OPTION": 0x87,
    "IOMMU_VFIO_IOAS": 0x88,
    "IOMMU_HWPT_ALLOC": 0x89,
    "IOMMU_GET_HW_INFO": 0x8A,
    "IOMMU_HWPT_SET_DIRTY_TRACKING": 0x8B,
    "IOMMU_HWPT_GET_DIRTY_BITMAP": 0x8C,
    "IOMMU_HWPT_INVALIDATE": 0x8D,
    "IOMMU_FAULT_QUEUE_ALLOC": 0x8E,
    "IOMMU_IOAS_MAP_FILE": 0x8F,
    "IOMMU_VIOMMU_ALLOC": 0x90,
    "IOMMU_VDEVICE_ALLOC": 0x91,
    "IOMMU_IOAS_CHANGE_PROCESS": 0x92,
    "IOMMU_VEVENTQ_ALLOC": 0x93,
    "IOMMU_HW_QUEUE_ALLOC": 0x94,
    "IOMMU_IOAS_NOIOMMU_GET_PA": 0x95,
}
VFIO = {
    "VFIO_GET_API_VERSION": 100,
    "VFIO_CHECK_EXTENSION": 101,
    "VFIO_SET_IOMMU": 102,
    "VFIO_GROUP_GET_STATUS": 103,
    "VFIO_GROUP_SET_CONTAINER": 104,
    "VFIO_GROUP_UNSET_CONTAINER": 105,
    "VFIO_GROUP_GET_DEVICE_FD": 106,
    "VFIO_DEVICE_GET_INFO": 107,
    "VFIO_DEVICE_GET_REGION_INFO": 108,
    "VFIO_DEVICE_GET_IRQ_INFO": 109,
    "VFIO_DEVICE_SET_IRQS": 110,
    "VFIO_DEVICE_RESET": 111,
    "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO": 112,
    "VFIO_DEVICE_PCI_HOT_RESET": 113,
    "VFIO_DEVICE_QUERY_GFX_PLANE": 114,
    "VFIO_DEVICE_GET_GFX_DMABUF": 115,
    "VFIO_DEVICE_IOEVENTFD": 116,
    "VFIO_DEVICE_FEATURE": 117,
    "VFIO_DEVICE_BIND_IOMMUFD": 118,
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT": 119,
    "VFIO_DEVICE_DETACH_IOMMUFD_PT": 120,
    "VFIO_MIG_GET_PRECOPY_INFO": 121,
    "VFIO_IOMMU_GET_INFO": 112,
    "VFIO_IOMMU_MAP_DMA": 113,
    "VFIO_IOMMU_UNMAP_DMA": 114,
    "VFIO_IOMMU_DIRTY_PAGES": 117,
}
REQUESTS = IOMMUFD | VFIO


def facts(kind: str) -> dict[str, list[str]]:
    lines = Path(__file__).with_name("uapi_linux_7_3.txt").read_text().splitlines()
    words = [line.split() for line in lines if line.startswith(f"{kind} ")]
    return {name: rest for _, name, *rest in words}


CONSTANTS = facts("constant")
STRUCTS = facts("struct")


def layout(name: str) -> list[str]:
    """The compiled struct in the notation of the facts."""
    kind: Any = ffi.typeof(f"struct {name}")
    words = [str(ffi.sizeof(kind))]
    for field, each in kind.fields:
        flexible = each.type.kind == "array" and each.type.length is None
        words.append(f"{field}:{each.offset}:{'[]' if flexible else ffi.sizeof(each.type)}")
    return words


@pytest.mark.parametrize(("name", "number"), REQUESTS.items())
def test_request_number(name: str, number: int) -> None:
    assert getattr(uapi, name) == IOC_NONE | ord(";") << 8 | number


@pytest.mark.parametrize(("name", "value"), CONSTANTS.items())
def test_constant(name: str, value: list[str]) -> None:
    assert getattr(uapi, name) == int(value[0], 0)


@pytest.mark.skipif(struct.calcsize("P") != 8, reason="the facts are of a 64-bit kernel and 64-bit user space")
@pytest.mark.parametrize(("name", "expected"), STRUCTS.items())
def test_struct_layout(name: str, expected: list[str]) -> None:
    assert layout(name) == expected


def test_every_constant_is_checked_here() -> None:
    declared = {name for name in dir(lib) if isinstance(getattr(lib, name), int)}
    assert declared == set(REQUESTS) | set(CONSTANTS)


def test_every_abi_struct_is_checked_here() -> None:
    declared = {name.removeprefix("struct ") for name in ffi.list_types()[1] if "pyiommufd" not in name}
    assert declared == set(STRUCTS)


def test_constants_are_plain_integers_of_the_package() -> None:
    assert {type(getattr(uapi, name)) for name in (*REQUESTS, *CONSTANTS)} == {int}
    assert not [name for name in vars(uapi) if name.startswith("pyiommufd_")]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("struct vfio_pci_dependent_device *", "devid", uapi.VFIO_PCI_DEVID_NOT_OWNED),
        ("struct vfio_region_info_cap_type *", "type", uapi.VFIO_REGION_TYPE_PCI_VENDOR_TYPE | 0x8086),
    ],
)
def test_a_value_compares_equal_to_what_its_field_returns(name: str, field: str, value: int) -> None:
    instance = ffi.new(name)
    setattr(instance, field, value)
    assert getattr(instance, field) == value


def test_anonymous_unions_share_their_storage() -> None:
    info = ffi.new("struct iommu_hw_info *")
    info.in_data_type = uapi.IOMMU_HW_INFO_TYPE_AMD
    assert info.out_data_type == uapi.IOMMU_HW_INFO_TYPE_AMD


def test_flexible_arrays_take_their_length() -> None:
    irqs = ffi.new("struct vfio_irq_set *", {"data": bytes(range(12))})
    assert bytes(ffi.buffer(irqs.data, 12)) == bytes(range(12))


def test_request_reaches_the_kernel() -> None:
    with open("/dev/null") as null:
        assert (
            lib.pyiommufd_raw_ioctl(null.fileno(), uapi.IOMMU_DESTROY, ffi.new("struct iommu_destroy *"))
            == -errno.ENOTTY
        )
    assert lib.pyiommufd_raw_ioctl(-1, uapi.IOMMU_DESTROY, ffi.NULL) == -errno.EBADF
