"""Twins of the fixture ``iommufd_ioas``: what devices are asked, and dma-bufs."""

from __future__ import annotations

import errno
import struct

import pytest

from pyiommufd import NotFoundError, UnsupportedError, uapi
from pyiommufd.testing.mock import commands
from pyiommufd.uapi import raw
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.conftest import Space
from tests.conformance.iommufd.steps import PAGE, issue, map_file_at, refused

# The mock IOMMU's data: no flags, and a register.
DATA = struct.pack("=2I", 0, commands.HW_INFO_REGISTER)


@twin("iommufd_ioas.get_hw_info", Route.RAW)
def test_get_hw_info(space: Space) -> None:
    def ask(device_id: int, room: int) -> bytes:
        """Ask with that much room. Returns what is there afterwards, where ones were before."""
        memory = bytearray(b"\xff" * room)
        fields = {"dev_id": device_id, "data_len": room, "data_uptr": raw.address_of(memory) if room else 0}
        answer = issue(space.iommufd, uapi.IOMMU_GET_HW_INFO, "iommu_hw_info", **fields)
        assert answer.out_data_type == commands.HW_INFO_TYPE
        assert answer.data_len == len(DATA)
        return bytes(memory)

    if not space.devices:
        for room in (len(DATA), len(DATA) + 8):
            with pytest.raises(NotFoundError):
                ask(0, room)
        return

    device = space.devices[-1]
    assert ask(device.id, 0) == b""
    assert ask(device.id, len(DATA)) == DATA
    # What is more than there is data for is cleared, and of less room all is used.
    assert ask(device.id, len(DATA) + 8) == DATA + bytes(8)
    assert ask(device.id, 4) == DATA[:4]

    info = device.hw_info()
    assert (info.type, info.data, info.pasid_width) == (commands.HW_INFO_TYPE, DATA, 0)
    with pytest.raises(UnsupportedError) as caught:
        device.hw_info(commands.HW_INFO_TYPE + 1)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert device.hw_info(commands.HW_INFO_TYPE) == info
    if space.pasid_device:
        assert space.pasid_device.hw_info().pasid_width == commands.PASID_WIDTH


# On Linux 7.3 these two fail in C, where the test command does not say the dma-buf's fd.


@twin("iommufd_ioas.dmabuf_simple", Route.RAW)
def test_dmabuf_simple(space: Space) -> None:
    size = 4 * PAGE
    with space.iommufd.mock_dmabuf(size) as dmabuf:
        for start, length in ((0, 0), (size, size), (0, size + 1)):
            with refused(errno.EINVAL):
                map_file_at(space.ioas, dmabuf.fileno(), start, length)
        mapping = space.ioas.map_file(dmabuf, size)
    assert space.ioas.unmap(mapping.iova, size) == size


@twin("iommufd_ioas.dmabuf_revoke", Route.MOCK)
def test_dmabuf_revoke(space: Space) -> None:
    size = 4 * PAGE
    with space.iommufd.mock_dmabuf(size) as dmabuf:
        mapping = space.ioas.map_file(dmabuf, size)
        dmabuf.revoke()
        # A page table is filled all the same, with nothing there.
        if space.devices:
            assert space.devices[-1].alloc_hwpt(space.ioas).id
        with refused(errno.ENODEV):
            space.ioas.map_file(dmabuf, size)
        dmabuf.restore()
        space.ioas.map_file(dmabuf, size)
        assert space.ioas.unmap(mapping.iova, size) == size
        assert space.ioas.map_file(dmabuf, size, iova=mapping.iova).iova == mapping.iova
    assert space.ioas.unmap_all() == 2 * size
