"""The mock IOMMU's part in page tables: dirty pages, PASIDs, page requests, nesting, events, dma-bufs.

Page tables are made here by their bare ioctls, so that what the mock says stands on nothing but the kernel.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import IOAS, DMABuffer, IoctlError, NotFoundError, UnsupportedError, uapi
from pyiommufd._uapi import ffi, lib
from pyiommufd.errors import ioctl_error
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests import by_id

IOVA = commands.APERTURE_START
PAGE = 4096


def issue(iommufd: MockIOMMUFD, request: str, struct_name: str, **fields: Any) -> Any:
    """One ioctl of the iommufd. Returns its struct."""
    command = ffi.new(f"struct {struct_name} *", {"size": ffi.sizeof(f"struct {struct_name}")} | fields)
    result = lib.pyiommufd_raw_ioctl(iommufd.fileno(), getattr(lib, request), command)
    if result < 0:
        raise ioctl_error(request, -result)
    return command


def bytes_at(*values: int, layout: str = "=2I") -> Any:
    """Memory for a struct that an ioctl points to; its length is that of the struct."""
    return ffi.from_buffer(bytearray(struct.pack(layout, *values)))


def where(memory: Any) -> int:
    return int(ffi.cast("uintptr_t", memory))


def alloc_hwpt(
    iommufd: MockIOMMUFD,
    device: MockDevice,
    parent: int,
    *,
    flags: int = 0,
    fault_id: int = 0,
    iotlb: int | None = None,
) -> int:
    """IOMMU_HWPT_ALLOC; with ``iotlb`` a nested page table."""
    fields: dict[str, Any] = {"flags": flags, "dev_id": device.id, "pt_id": parent, "fault_id": fault_id}
    if iotlb is not None:
        data = bytes_at(iotlb, commands.PageTableType.DEFAULT)
        fields |= {"data_type": commands.HWPT_DATA_TYPE, "data_len": len(data), "data_uptr": where(data)}
    return int(issue(iommufd, "IOMMU_HWPT_ALLOC", "iommu_hwpt_alloc", **fields).out_hwpt_id)


def destroy(iommufd: MockIOMMUFD, *ids: int) -> None:
    for one in ids:
        by_id.destroy(iommufd, one)


def invalidate(iommufd: MockIOMMUFD, target: int, kind: int, data: Any) -> None:
    fields = {"hwpt_id": target, "data_type": kind, "data_uptr": where(data), "entry_len": len(data), "entry_num": 1}
    issue(iommufd, "IOMMU_HWPT_INVALIDATE", "iommu_hwpt_invalidate", **fields)


@pytest.fixture
def parent(iommufd: MockIOMMUFD, device: MockDevice, ioas: IOAS) -> int:
    """A page table for others to be nested in."""
    return alloc_hwpt(iommufd, device, ioas.id, flags=uapi.IOMMU_HWPT_ALLOC_NEST_PARENT)


# Dirty pages


def test_dirty_pages(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice, buffer: DMABuffer) -> None:
    device.detach()
    ioas.huge_pages = False
    device.attach(ioas)
    ioas.map(buffer, iova=IOVA)
    with pytest.raises(IoctlError) as caught:
        device.set_dirty(IOVA, [0], count=4)
    assert caught.value.errno == errno.EINVAL

    hwpt = alloc_hwpt(iommufd, device, ioas.id, flags=uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING)
    device.attach_to_id(hwpt, replace=True)
    assert device.hwpt_id() == hwpt
    on = {"hwpt_id": hwpt, "flags": uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE}
    issue(iommufd, "IOMMU_HWPT_SET_DIRTY_TRACKING", "iommu_hwpt_set_dirty_tracking", **on)
    assert device.set_dirty(IOVA, [1, 3], count=4) == 2
    with pytest.raises(ValueError, match="page 4"):
        device.set_dirty(IOVA, [4], count=4)

    bitmap = ffi.new("uint64_t *")
    asked = {"iova": IOVA, "length": len(buffer), "page_size": PAGE, "data": where(bitmap)}
    issue(iommufd, "IOMMU_HWPT_GET_DIRTY_BITMAP", "iommu_hwpt_get_dirty_bitmap", hwpt_id=hwpt, **asked)
    assert bitmap[0] == 1 << 1 | 1 << 3
    device.detach()
    destroy(iommufd, hwpt)


def test_device_without_dirty_tracking(iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    device = iommufd.mock_device(ioas, dirty_tracking=False)
    with pytest.raises(UnsupportedError):
        alloc_hwpt(iommufd, device, ioas.id, flags=uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING)


# PASIDs


def test_pasids(iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    device = iommufd.mock_device(ioas, pasid=True)
    first, second, third = (alloc_hwpt(iommufd, device, ioas.id, flags=uapi.IOMMU_HWPT_ALLOC_PASID) for _ in range(3))
    device.attach_to_id(first, replace=True)
    assert device.on(first)
    assert device.on(None, 5)
    device.attach_to_id(second, 5)
    assert device.on(second, 5)
    assert not device.on(None, 5)
    assert not device.on(third, 5)
    assert device.on(first)
    assert (device.hwpt_id(), device.hwpt_id(5)) == (first, second)
    device.attach_to_id(third, 5, replace=True)
    assert device.on(third, 5)
    assert not device.on(second, 5)
    device.detach(5)
    assert device.on(None, 5)
    with pytest.raises(NotFoundError):
        device.on(4711, 5)

    # The one PASID whose replace fails on purpose, and leaves things as they were.
    device.attach_to_id(second, commands.PASID_THAT_FAILS)
    with pytest.raises(IoctlError) as caught:
        device.attach_to_id(third, commands.PASID_THAT_FAILS, replace=True)
    assert caught.value.errno == errno.ENOMEM
    assert device.on(second, commands.PASID_THAT_FAILS)
    device.close()
    destroy(iommufd, first, second, third)


def test_device_closes_with_a_pasid_attached(iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    device = iommufd.mock_device(ioas, pasid=True)
    hwpt = alloc_hwpt(iommufd, device, ioas.id, flags=uapi.IOMMU_HWPT_ALLOC_PASID)
    device.attach_to_id(hwpt, replace=True)
    device.attach_to_id(hwpt, 7)
    device.close()
    destroy(iommufd, hwpt)  # used by nobody any more
    ioas.close()


def test_pasid_takes_a_device_that_has_some(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice) -> None:
    hwpt = alloc_hwpt(iommufd, device, ioas.id, flags=uapi.IOMMU_HWPT_ALLOC_PASID)
    device.attach_to_id(hwpt, replace=True)
    with pytest.raises(IoctlError) as caught:
        device.attach_to_id(hwpt, 5)
    assert caught.value.errno == errno.EINVAL
    device.detach()
    destroy(iommufd, hwpt)


# Page requests


def test_page_fault_comes_to_the_queue(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice) -> None:
    queue = issue(iommufd, "IOMMU_FAULT_QUEUE_ALLOC", "iommu_fault_alloc")
    os.set_blocking(queue.out_fault_fd, False)
    hwpt = alloc_hwpt(iommufd, device, ioas.id, flags=uapi.IOMMU_HWPT_FAULT_ID_VALID, fault_id=queue.out_fault_id)
    device.attach_to_id(hwpt, replace=True)
    with open(queue.out_fault_fd, "r+b", buffering=0) as file:
        device.page_fault(0x7000, group=3, permissions=uapi.IOMMU_PGFAULT_PERM_WRITE)
        flags, dev_id, _, group, permissions, _, address, _, cookie = struct.unpack("=6IQ2I", file.read(40))
        assert flags & uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE
        assert (dev_id, group, permissions, address) == (device.id, 3, uapi.IOMMU_PGFAULT_PERM_WRITE, 0x7000)
        assert file.read(40) in (None, b"")
        file.write(struct.pack("=2I", cookie, uapi.IOMMUFD_PAGE_RESP_INVALID))
        device.detach()
        destroy(iommufd, hwpt)
    destroy(iommufd, queue.out_fault_id)


# Nesting


def test_iotlb_of_a_nested_page_table(iommufd: MockIOMMUFD, device: MockDevice, parent: int) -> None:
    nested = alloc_hwpt(iommufd, device, parent, iotlb=0x1234)
    assert all(iommufd.iotlb_holds(nested, entry, 0x1234) for entry in range(commands.IOTLB_ENTRIES))
    assert not iommufd.iotlb_holds(nested, 0, 0)
    invalidate(iommufd, nested, commands.HWPT_INVALIDATE_TYPE, bytes_at(0, 2))
    assert [iommufd.iotlb_holds(nested, entry, 0) for entry in range(4)] == [False, False, True, False]
    with pytest.raises(NotFoundError):
        iommufd.iotlb_holds(4711, 0, 0)
    destroy(iommufd, nested, parent)


def test_virtual_iommu(iommufd: MockIOMMUFD, device: MockDevice, parent: int) -> None:
    """Its devices' caches, and its events."""
    fields = {"type": commands.VIOMMU_TYPE, "dev_id": device.id, "hwpt_id": parent}
    viommu = issue(iommufd, "IOMMU_VIOMMU_ALLOC", "iommu_viommu_alloc", **fields).out_viommu_id
    nested = alloc_hwpt(iommufd, device, viommu, iotlb=1)
    with pytest.raises(NotFoundError):
        device.virtual_event()
    fields = {"viommu_id": viommu, "dev_id": device.id, "virt_id": 0x99}
    vdevice = issue(iommufd, "IOMMU_VDEVICE_ALLOC", "iommu_vdevice_alloc", **fields).out_vdevice_id
    device.attach_to_id(nested, replace=True)

    assert all(device.cache_holds(entry, commands.CACHE_DEFAULT) for entry in range(commands.CACHE_ENTRIES))
    assert not device.cache_holds(0, 0)
    invalidate(iommufd, viommu, commands.VIOMMU_INVALIDATE_TYPE, bytes_at(0, 0x99, 1, layout="=3I"))
    assert [device.cache_holds(entry, 0) for entry in range(4)] == [False, True, False, False]

    fields = {"viommu_id": viommu, "type": commands.VEVENTQ_TYPE, "veventq_depth": 4}
    queue = issue(iommufd, "IOMMU_VEVENTQ_ALLOC", "iommu_veventq_alloc", **fields)
    device.virtual_event()
    with open(queue.out_veventq_fd, "rb", buffering=0) as file:
        _, sequence, virt_id = struct.unpack("=3I", file.read(12))
    assert (sequence, virt_id) == (0, 0x99)

    device.detach()
    destroy(iommufd, vdevice, nested, queue.out_veventq_id, viommu, parent)


# dma-bufs


def test_dmabuf_is_mapped_and_revoked(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice) -> None:
    def map_file(iova: int) -> None:
        fields = {"ioas_id": ioas.id, "fd": dmabuf.fileno(), "length": PAGE, "iova": iova}
        flags = uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE
        issue(iommufd, "IOMMU_IOAS_MAP_FILE", "iommu_ioas_map_file", flags=flags, **fields)

    with iommufd.mock_dmabuf(PAGE) as dmabuf:
        assert str(Path(f"/proc/self/fd/{dmabuf.fileno()}").readlink()).startswith("/dmabuf:")
        map_file(IOVA)
        dmabuf.revoke()
        with pytest.raises(IoctlError) as caught:
            map_file(IOVA + PAGE)
        assert caught.value.errno == errno.ENODEV
        dmabuf.restore()
        map_file(IOVA + PAGE)
        assert ioas.unmap_all() == 2 * PAGE
    with pytest.raises(IoctlError):
        iommufd.mock_dmabuf(0)
