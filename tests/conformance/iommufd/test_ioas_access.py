"""Twins of the fixture ``iommufd_ioas``: in-kernel users of an address space, and memory of other processes."""

from __future__ import annotations

import errno
import os

import pytest

from pyiommufd import DMABuffer, NotFoundError
from pyiommufd.testing.mock import commands
from pyiommufd.uapi import raw
from tests.by_id import map_memory
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.conftest import Space
from tests.conformance.iommufd.steps import (
    HUGE,
    PAGE,
    check_access,
    in_child,
    map_at,
    refused,
    unmap_at,
    wait_for,
)

IOVA = commands.APERTURE_START


# The kernel's own spelling.
@twin("iommufd_ioas.access_domain_destory", Route.MOCK)
def test_access_domain_destroy(space: Space, huge_pages: None) -> None:
    with DMABuffer(2 * HUGE, huge_page_size=HUGE) as huge:
        view = memoryview(huge)
        mapping = space.ioas.map(huge, iova=space.base)
        with space.iommufd.mock_access(space.ioas, pin=True) as access:
            pages = access.pin(space.base + PAGE, view[PAGE : 2 * PAGE], writeable=False)
            # With the device its page table goes, across the huge page of which one page is pinned.
            if space.devices:
                assert space.devices[-1].reaches(view, space.base)
                space.devices[-1].close()
            pages.unpin()
            with pytest.raises(NotFoundError):
                pages.unpin()
        assert space.ioas.unmap(mapping.iova, len(view)) == len(view)
        view.release()


@twin("iommufd_ioas.access_pin", Route.MOCK)
def test_access_pin(space: Space, buffer: memoryview) -> None:
    with space.iommufd.mock_access(space.ioas, pin=True) as access:
        for pages in range(1, 16):
            piece = buffer[: pages * PAGE]
            space.ioas.map(buffer, iova=IOVA)

            access.pin(IOVA, piece, writeable=False).unpin()

            first = access.pin(IOVA, piece, writeable=False)
            second = access.pin(IOVA, piece, writeable=False)
            second.unpin()
            first.unpin()

            # A page table comes and goes while they are pinned.
            pinned = access.pin(IOVA, piece, writeable=False)
            device = space.iommufd.mock_device(space.ioas)
            assert device.reaches(buffer, IOVA)
            device.close()
            pinned.unpin()

            assert space.ioas.unmap(IOVA, len(buffer)) == len(buffer)


@twin("iommufd_ioas.access_pin_unmap", Route.MOCK)
def test_access_pin_unmap(space: Space, buffer: memoryview) -> None:
    with space.iommufd.mock_access(space.ioas, pin=True) as access:
        space.ioas.map(buffer, iova=IOVA)
        pages = access.pin(IOVA, buffer, writeable=False)
        assert space.ioas.unmap(IOVA, len(buffer)) == len(buffer)
        with pytest.raises(NotFoundError):
            pages.unpin()


@twin("iommufd_ioas.access_rw", Route.MOCK)
def test_access_rw(space: Space, buffer: memoryview) -> None:
    with space.iommufd.mock_access(space.ioas) as access:
        mapping = space.ioas.map(buffer)
        check_access(access, mapping.iova, buffer)
        check_access(access, mapping.iova, buffer, slow=True)
        assert space.ioas.unmap(mapping.iova, len(buffer)) == len(buffer)


@twin("iommufd_ioas.access_rw_unaligned", Route.RAW)
def test_access_rw_unaligned(space: Space, buffer: memoryview) -> None:
    iova = space.base + commands.PAGE_SIZE
    with space.iommufd.mock_access(space.ioas) as access:
        assert map_at(space.ioas, raw.address_of(buffer), len(buffer), iova) == iova
        check_access(access, iova, buffer)
        assert unmap_at(space.ioas, iova, len(buffer)) == len(buffer)


# A forked child maps memory that is shared with its parent; the library leaves that to the process that opened it.


@twin("iommufd_ioas.fork_gone", Route.RAW)
def test_fork_gone(space: Space, buffer: memoryview) -> None:
    fd, ioas_id, address, length = space.ioas.iommufd.fileno(), space.ioas.id, raw.address_of(buffer), len(buffer)
    with space.iommufd.mock_access(space.ioas) as access:
        assert wait_for(in_child(lambda: map_memory(fd, ioas_id, address, length, IOVA))) == 0
        if space.devices:
            # Pinned while the child lived: a further page table is filled from the first.
            device = space.iommufd.mock_device(space.ioas)
            assert device.reaches(buffer, IOVA)
            check_access(access, IOVA, buffer)
        else:
            # Nothing has been pinned, and the memory to pin went with the child.
            with refused(errno.EFAULT):
                space.iommufd.mock_device(space.ioas)


@twin("iommufd_ioas.fork_present", Route.RAW)
def test_fork_present(space: Space, buffer: memoryview) -> None:
    fd, ioas_id, address, length = space.ioas.iommufd.fileno(), space.ioas.id, raw.address_of(buffer), len(buffer)
    mapped, end = os.eventfd(0), os.eventfd(0)

    def body() -> None:
        map_memory(fd, ioas_id, address, length, IOVA)
        os.eventfd_write(mapped, 1)
        os.eventfd_read(end)

    with space.iommufd.mock_access(space.ioas) as access:
        child = in_child(body)
        try:
            os.eventfd_read(mapped)
            # The pages are the other process's, by its memory.
            space.iommufd.mock_device(space.ioas)
            check_access(access, IOVA, buffer)
        finally:
            os.eventfd_write(end, 1)
            status = wait_for(child)
            os.close(mapped)
            os.close(end)
        assert status == 0
