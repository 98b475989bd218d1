"""Twins of the fixture ``iommufd_mock_domain``: what is mapped is in the page tables, and pinned as it has to be."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pyiommufd import IOAS, BusyError, DMABuffer, InUseError, NotFoundError, UnsupportedError, uapi
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from pyiommufd.uapi import raw
from tests.by_id import BOTH, destroy
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import (
    HUGE,
    PAGE,
    issue,
    map_at,
    map_file_at,
    refused,
    unmap_at,
)

IOVA = commands.APERTURE_START
SMALL = commands.PAGE_SIZE


@dataclass(frozen=True)
class Variant:
    """How many devices, and what memory is mapped: of huge pages, or by its file."""

    devices: int
    huge: bool = False
    file: bool = False


@dataclass(frozen=True)
class Domain:
    """An address space whose page tables can be looked into.

    Attributes:
        iommufd: Whose it is.
        ioas: The address space.
        devices: The mock devices that are attached to it.
        variant: How it was made.
    """

    iommufd: MockIOMMUFD
    ioas: IOAS
    devices: tuple[MockDevice, ...]
    variant: Variant

    @property
    def size(self) -> int:
        """Bytes of the memory of a case."""
        return 2 * HUGE if self.variant.huge else 8 * PAGE

    def check(self, memory: memoryview, iova: int) -> None:
        """Every device reaches this memory there."""
        for device in self.devices:
            assert device.reaches(memory, iova)

    def memory(self) -> DMABuffer:
        """Memory of the variant's kind. As in C, that of files has no huge pages."""
        if self.variant.file:
            return DMABuffer(self.size, memfd=True)
        return DMABuffer(self.size, huge_page_size=HUGE if self.variant.huge else None)

    def map_piece(self, memory: DMABuffer, address: int, start: int, length: int) -> int:
        """Map a piece of memory, by its file where the variant says so. Returns its iova."""
        if self.variant.file:
            return map_file_at(self.ioas, memory.fileno(), start, length)
        return map_at(self.ioas, address + start, length)

    def pieces(self) -> Iterator[range]:
        """Every piece of the memory that begins and ends where the mock IOMMU's pages do.

        Of huge pages those from every sixteenth to the end: C's loop has none at all for them.
        """
        if self.variant.huge:
            for start in range(0, self.size, self.size // 16):
                yield range(start, self.size)
            return
        for start in range(0, self.size, SMALL):
            for end in range(start + SMALL, self.size, SMALL):
                yield range(start, end)


VARIANTS = {
    "one_domain": Variant(1),
    "two_domains": Variant(2),
    "one_domain_hugepage": Variant(1, huge=True),
    "two_domains_hugepage": Variant(2, huge=True),
    "one_domain_file": Variant(1, file=True),
    "one_domain_file_hugepage": Variant(1, huge=True, file=True),
}


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def domain(request: pytest.FixtureRequest, iommufd: MockIOMMUFD, huge_pages: None) -> Domain:
    variant: Variant = request.param
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    devices = tuple(iommufd.mock_device(ioas) for _ in range(variant.devices))
    for device in devices:
        assert all(device.cache_holds(entry, commands.CACHE_DEFAULT) for entry in range(commands.CACHE_ENTRIES))
    return Domain(iommufd, ioas, devices, variant)


@twin("iommufd_mock_domain.basic", Route.RAW)
def test_basic(domain: Domain, buffer: memoryview) -> None:
    if domain.variant.file:
        check_basic_file(domain)
    else:
        check_basic_memory(domain, buffer)


def check_basic_memory(domain: Domain, buffer: memoryview) -> None:
    mapping = domain.ioas.map(buffer[:PAGE])
    domain.check(buffer[:PAGE], mapping.iova)

    # Memory that goes away from behind an address, first half of it, then all. Nothing else may take its place: all
    # that is needed is made before.
    memory = domain.memory()
    memory[::PAGE] = bytes(domain.size // PAGE)
    address = raw.address_of(memory)
    command = raw.struct("iommu_ioas_map", ioas_id=domain.ioas.id, flags=BOTH, user_va=address, length=domain.size)
    fd = domain.iommufd.fileno()
    memory.resize(domain.size // 2)
    with refused(errno.EFAULT):
        raw.ioctl(fd, uapi.IOMMU_IOAS_MAP, command)
    memory.close()
    with refused(errno.EFAULT):
        raw.ioctl(fd, uapi.IOMMU_IOAS_MAP, command)
    assert domain.ioas.unmap_all() == PAGE


def check_basic_file(domain: Domain) -> None:
    shared = DMABuffer(16 * PAGE, memfd=True)
    mapping = domain.ioas.map_file(shared, PAGE)
    domain.check(memoryview(shared)[:PAGE], mapping.iova)

    memory = domain.memory()
    with refused(errno.EINVAL):
        map_file_at(domain.ioas, memory.fileno(), 0, domain.size + 1)
    with refused(errno.EINVAL):
        domain.ioas.map_file(memory, domain.size + PAGE)
    os.ftruncate(memory.fileno(), 0)
    with refused(errno.EINVAL):
        domain.ioas.map_file(memory, domain.size)
    assert domain.ioas.unmap_all() == PAGE


@twin("iommufd_mock_domain.ro_unshare", Route.PUBLIC)
def test_ro_unshare(domain: Domain) -> None:
    with open("/proc/self/exe", "rb") as program:
        private = mmap.mmap(program.fileno(), PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    # Mapped for reading the page is this process's own already: to write to it does not change which it is.
    mapping = domain.ioas.map(private, writeable=False)
    view = memoryview(private)
    domain.check(view, mapping.iova)
    view[:] = b"\1" * PAGE
    domain.check(view, mapping.iova)
    view.release()
    mapping.unmap()
    private.close()


@twin("iommufd_mock_domain.all_aligns", Route.RAW)
def test_all_aligns(domain: Domain) -> None:
    memory = domain.memory()
    view, address = memoryview(memory), raw.address_of(memory)
    assert domain.iommufd.pinned(view, 0)
    for piece in domain.pieces():
        iova = domain.map_piece(memory, address, piece.start, len(piece))
        domain.check(view[piece.start : piece.stop], iova)
        check_pinned(domain, view, piece)
        assert unmap_at(domain.ioas, iova, len(piece)) == len(piece)
    assert domain.iommufd.pinned(view, 0)


@twin("iommufd_mock_domain.all_aligns_copy", Route.RAW)
def test_all_aligns_copy(domain: Domain) -> None:
    memory = domain.memory()
    view, address, fd = memoryview(memory), raw.address_of(memory), domain.iommufd.fileno()
    assert domain.iommufd.pinned(view, 0)
    for piece in domain.pieces():
        iova = domain.map_piece(memory, address, piece.start, len(piece))
        # One more device comes and goes while it is mapped.
        stdev_id, hwpt_id, _ = commands.mock_domain(fd, domain.ioas.id)
        commands.md_check_map(fd, hwpt_id, iova, len(piece), address + piece.start)
        domain.check(view[piece.start : piece.stop], iova)
        check_pinned(domain, view, piece)
        destroy(domain.iommufd, stdev_id)
        domain.check(view[piece.start : piece.stop], iova)
        assert unmap_at(domain.ioas, iova, len(piece)) == len(piece)
    assert domain.iommufd.pinned(view, 0)


def check_pinned(domain: Domain, view: memoryview, piece: range) -> None:
    """Each page is pinned once, however many page tables lead there."""
    whole = view[piece.start // PAGE * PAGE : piece.stop // PAGE * PAGE]
    if len(whole):
        assert domain.iommufd.pinned(whole, 1)


@twin("iommufd_mock_domain.user_copy", Route.MOCK)
def test_user_copy(domain: Domain, buffer: memoryview) -> None:
    shared = DMABuffer(16 * PAGE, memfd=True)
    memory = memoryview(shared) if domain.variant.file else buffer
    size = len(memory)

    def mapped_elsewhere() -> tuple[IOAS, int]:
        """The memory in an address space without devices, and where."""
        other = domain.iommufd.alloc_ioas()
        assert other.id
        return other, (other.map_file(shared, size) if domain.variant.file else other.map(memory)).iova

    def copy(source: IOAS, iova: int) -> None:
        """What an access has pinned there comes to the devices."""
        domain.ioas.copy_from(source, iova, size, dst_iova=IOVA, readable=False)
        domain.check(memory, IOVA)

    other, iova = mapped_elsewhere()
    access = domain.iommufd.mock_access(other, pin=True)
    access.pin(iova, memory, writeable=False)
    copy(other, iova)

    following, iova = mapped_elsewhere()
    access.replace(following)
    assert domain.ioas.unmap(IOVA, size) == size
    other.close()

    pages = access.pin(iova, memory, writeable=False)
    copy(following, iova)
    pages.unpin()
    access.close()
    following.close()
    domain.check(memory, IOVA)


@twin("iommufd_mock_domain.replace", Route.MOCK)
def test_replace(domain: Domain) -> None:
    first = domain.devices[0]
    old = [device.hwpt_id() for device in domain.devices]
    other = domain.iommufd.alloc_ioas()
    assert other.id

    first.replace(other)
    assert first.page_table is other
    now = first.hwpt_id()
    assert first.on(now)
    if len(domain.devices) == 1:
        # The page table that it was on went with its last user.
        with pytest.raises(NotFoundError):
            first.attach_to_id(old[0], replace=True)
    first.replace(other)
    assert first.on(now)
    if len(domain.devices) > 1:
        for hwpt_id in (old[1], old[1], old[0]):
            first.attach_to_id(hwpt_id, replace=True)
            assert first.on(hwpt_id)

    first.replace(domain.ioas)
    assert first.on(first.hwpt_id())
    other.close()
    with pytest.raises(NotFoundError):
        destroy(domain.iommufd, other.id)


@twin("iommufd_mock_domain.alloc_hwpt", Route.RAW)
def test_alloc_hwpt(domain: Domain) -> None:
    for device in domain.devices:
        with pytest.raises(UnsupportedError) as caught:
            issue(
                domain.iommufd,
                uapi.IOMMU_HWPT_ALLOC,
                "iommu_hwpt_alloc",
                dev_id=device.id,
                pt_id=domain.ioas.id,
                flags=0xFFFF_FFFF & ~uapi.IOMMU_HWPT_ALLOC_NEST_PARENT,
            )
        assert caught.value.errno == errno.EOPNOTSUPP
        plain = device.alloc_hwpt(domain.ioas)
        parent = device.alloc_hwpt(domain.ioas, nest_parent=True)

        for hwpt in (plain, parent):
            device.replace(hwpt)
            assert device.on(hwpt.id)
            with pytest.raises(InUseError):
                hwpt.close()
            with pytest.raises(BusyError):
                destroy(domain.iommufd, hwpt.id)
        device.replace(domain.ioas)
        assert not device.on(parent.id)
        parent.close()

        other = domain.iommufd.mock_device(plain)
        assert other.on(plain.id)
        other.close()
        plain.close()
        for hwpt in (plain, parent):
            with pytest.raises(NotFoundError):
                destroy(domain.iommufd, hwpt.id)
