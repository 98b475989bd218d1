"""Memory that is mapped by its file, and handed to another process with the iommufd."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AlreadyMappedError,
    Device,
    DMABuffer,
    IoctlError,
    UnsupportedError,
)
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.guest.dma import IOVA, Arrives

PAGE = mmap.PAGESIZE


@pytest.fixture
def buffer() -> Iterator[DMABuffer]:
    with DMABuffer(4 * PAGE, memfd=True) as buffer:
        yield buffer


def test_the_device_reaches_the_file(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    device.attach(ioas)
    mapping = ioas.map_file(buffer, len(buffer), iova=IOVA)
    assert (mapping.iova, mapping.length, ioas.mappings) == (IOVA, len(buffer), (mapping,))
    assert arrives(edu, buffer)
    mapping.unmap()
    assert not arrives(edu, buffer)


def test_a_part_of_the_file(device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer) -> None:
    device.attach(ioas)
    ioas.map_file(buffer.fileno(), PAGE, start=2 * PAGE, iova=IOVA)
    buffer[:] = bytes(len(buffer))
    buffer[2 * PAGE : 2 * PAGE + 4] = b"part"
    edu.copy_in(IOVA, 4)
    edu.copy_out(IOVA + 8, 4)
    assert buffer[2 * PAGE + 8 : 2 * PAGE + 12] == b"part"
    assert buffer[:].count(b"part") == 2


def test_the_file_may_be_closed_and_unmapped(device: Device, edu: EduDriver, ioas: IOAS) -> None:
    device.attach(ioas)
    fd = os.memfd_create("pyiommufd-test")
    try:
        os.ftruncate(fd, PAGE)
        other = os.dup(fd)
        ioas.map_file(fd, PAGE, iova=IOVA)
    finally:
        os.close(fd)
    try:
        os.pwrite(other, b"file", 0)
        edu.copy_in(IOVA, 4)
        edu.copy_out(IOVA + 64, 4)
        assert os.pread(other, 4, 64) == b"file"
    finally:
        os.close(other)


def test_huge_pages(huge_pages: None, ioas: IOAS, device: Device, edu: EduDriver) -> None:
    device.attach(ioas)
    with DMABuffer(2 << 20, huge_page_size=2 << 20, memfd=True) as buffer:
        with ioas.map_file(buffer, len(buffer), iova=2 << 20) as mapping:
            buffer[:4] = b"huge"
            edu.copy_in(mapping.iova, 4)
            edu.copy_out(mapping.iova + (1 << 20), 4)
        assert buffer[1 << 20 : (1 << 20) + 4] == b"huge"


def test_below_and_chosen_by_the_kernel(ioas: IOAS, buffer: DMABuffer) -> None:
    chosen = ioas.map_file(buffer, PAGE)
    low = ioas.map_file(buffer, PAGE, below=1 << 20)
    next_low = ioas.map_file(buffer, PAGE, below=1 << 20)
    assert low.iova + PAGE <= next_low.iova < 1 << 20
    assert {chosen, low, next_low} == set(ioas.mappings)
    with pytest.raises(ValueError, match="exclude each other"):
        ioas.map_file(buffer, PAGE, iova=0, below=1 << 20)
    with pytest.raises(IoctlError) as caught:
        ioas.map_file(buffer, 2 * PAGE, below=PAGE)
    assert caught.value.errno == errno.ENOSPC


def test_taken_addresses(ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.map_file(buffer, PAGE, iova=IOVA)
    with pytest.raises(AlreadyMappedError, match="IOAS_MAP_FILE") as caught:
        ioas.map_file(buffer, PAGE, iova=IOVA)
    assert f"{IOVA:#x}..{IOVA + PAGE - 1:#x}" in str(caught.value)
    assert len(ioas.mappings) == 1


def test_files_that_cannot_be_mapped(device: Device, ioas: IOAS, buffer: DMABuffer) -> None:
    device.attach(ioas)
    with pytest.raises(IoctlError, match="after the end of the file") as caught:
        ioas.map_file(buffer, 2 * PAGE, start=3 * PAGE, iova=IOVA)
    assert caught.value.errno == errno.EINVAL
    with open(sys.executable, "rb") as file, pytest.raises(IoctlError, match="not a memfd"):
        ioas.map_file(file, PAGE, iova=IOVA)
    with pytest.raises(IoctlError, match="not open") as caught:
        ioas.map_file(987654, PAGE, iova=IOVA)
    assert caught.value.errno == errno.EBADF
    assert ioas.mappings == ()
    assert ioas.map_file(buffer, PAGE, start=3 * PAGE, iova=IOVA).mapped


def opened(kind: str) -> Any:
    """The fd of what is no memory, or an object that has one."""
    if kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
        return reading
    others: dict[str, Callable[[], Any]] = {
        "socket": socket.socket,
        "eventfd": lambda: os.eventfd(0),
        "iommufd": IOMMUFD,
    }
    return others[kind]() if kind in others else os.open(kind, os.O_RDONLY)


@pytest.mark.parametrize("iova", [None, IOVA])
@pytest.mark.parametrize(
    "kind", ["/dev/null", "/dev/zero", "/", "/proc/self/status", "pipe", "socket", "eventfd", "iommufd"]
)
def test_what_is_no_file_of_memory_is_called_that(device: Device, ioas: IOAS, kind: str, iova: int | None) -> None:
    device.attach(ioas)
    file = opened(kind)
    try:
        with pytest.raises(IoctlError) as caught:
            ioas.map_file(file, PAGE, iova=iova)
    finally:
        os.close(file) if isinstance(file, int) else file.close()
    assert caught.value.errno == errno.EINVAL
    first, *others = caught.value.causes
    assert "not a memfd" in first.summary
    assert "fd " in first.evidence
    # Addresses that the kernel chooses are not to blame.
    assert len(others) == (iova is not None)


@pytest.mark.parametrize(("kind", "size"), [("tmpfs", PAGE), ("hugetlbfs", 2 << 20)])
def test_files_of_memory_wherever_they_are(
    huge_pages: None, device: Device, ioas: IOAS, tmp_path: Path, kind: str, size: int
) -> None:
    device.attach(ioas)
    subprocess.run(["mount", "-t", kind, "pyiommufd-test", tmp_path], check=True)
    try:
        with (tmp_path / "file").open("w+b") as file:
            file.truncate(size)
            with pytest.raises(IoctlError) as caught:
                ioas.map_file(file, 2 * size)
            assert caught.value.errno == errno.EINVAL
            assert [cause.summary for cause in caught.value.causes] == [
                f"the range ends at {2 * size:#x}, after the end of the file"
            ]
            ioas.map_file(file, size).unmap()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_range_after_the_end_of_a_dma_buf(mock: MockIOMMUFD, mock_ioas: IOAS, mock_device: MockDevice) -> None:
    with mock.mock_dmabuf(PAGE) as dmabuf:
        with pytest.raises(IoctlError, match="after the end of the file") as caught:
            mock_ioas.map_file(dmabuf, 2 * PAGE)
        assert caught.value.errno == errno.EINVAL
        mock_ioas.map_file(dmabuf, PAGE).unmap()


def test_any_dma_buf_says_whether_it_was_revoked(mock: MockIOMMUFD, mock_ioas: IOAS, mock_device: MockDevice) -> None:
    """It is asked of the kernel, whoever made and revoked it."""
    with mock.mock_dmabuf(PAGE) as dma_buf:
        mapping = mock_ioas.map_file(dma_buf, PAGE)
        seen = [mapping.revoked]
        dma_buf.revoke()
        assert [*seen, mapping.revoked] == [False, True]
        mapping.unmap()


def test_a_file_that_is_open_by_its_path_alone(ioas: IOAS) -> None:
    file = os.open("/", os.O_PATH)
    try:
        with pytest.raises(IoctlError, match="O_PATH") as caught:
            ioas.map_file(file, PAGE)
    finally:
        os.close(file)
    assert caught.value.errno == errno.EBADF


def test_an_attach_names_the_mapping_that_is_after_the_end(device: Device, ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.map_file(buffer, PAGE, iova=IOVA)
    ioas.map_file(buffer, PAGE, start=8 * PAGE, iova=2 * IOVA)
    with pytest.raises(IoctlError, match=f"{2 * IOVA:#x}"):
        device.attach(ioas)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"length": 0}, ValueError),
        ({"length": -PAGE}, ValueError),
        ({"length": 100}, ValueError),
        ({"start": 1}, ValueError),
        ({"start": -PAGE}, ValueError),
        ({"start": 1 << 64}, ValueError),
        ({"start": (1 << 64) - PAGE, "length": 2 * PAGE}, ValueError),
        ({"iova": 17}, ValueError),
        ({"iova": -PAGE}, ValueError),
        ({"iova": 1 << 64}, ValueError),
        ({"iova": 1.0}, TypeError),
        ({"file": -1}, ValueError),
        ({"file": 1 << 40}, ValueError),
        ({"file": "text"}, TypeError),
        ({"file": None}, TypeError),
        ({"readable": False, "writeable": False}, ValueError),
    ],
)
def test_wrong_arguments(ioas: IOAS, buffer: DMABuffer, changed: dict[str, object], error: type[Exception]) -> None:
    arguments: dict[str, object] = {"file": buffer, "length": PAGE, "iova": IOVA} | changed
    with pytest.raises(error):
        ioas.map_file(**arguments)  # type: ignore[arg-type]
    assert ioas.mappings == ()


def test_a_copy_and_what_it_is_of(ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.map_file(buffer, 2 * PAGE, iova=IOVA)
    copy = ioas.copy_from(ioas, IOVA, PAGE)
    assert ioas._table.of_no_file() == []
    memory = ioas.map(DMABuffer(PAGE))
    assert ioas._table.of_no_file() == [memory]
    assert copy.mapped


# Handover to another process


def _pinned(pid: int | str = "self") -> int:
    """Memory that a process has pinned, in KiB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmPin:"))


def test_change_process_moves_the_accounting(in_child: Callable[[Callable[[], Any]], Any]) -> None:
    """As any user but root, for whom nothing is accounted."""

    def first_process() -> dict[str, int]:
        os.setuid(65534)
        with MockIOMMUFD() as iommufd, DMABuffer(16 * PAGE, memfd=True) as buffer:
            ioas = iommufd.alloc_ioas()
            device = iommufd.mock_device(ioas)
            ioas.map_file(buffer, len(buffer), iova=commands.APERTURE_START)
            fd, before = iommufd.fileno(), _pinned()

            def second_process() -> tuple[int, int, int]:
                with IOMMUFD.from_fd(os.dup(fd)) as taken:
                    at_first = _pinned()
                    taken.change_process()
                    return at_first, _pinned(), _pinned(os.getppid())

            there = in_child(second_process)
            reaches = device.reaches(buffer, commands.APERTURE_START)
            iommufd.change_process()
            return {"before": before, "there": there, "reaches": reaches, "again": _pinned()}

    size = 16 * PAGE // 1024
    found = in_child(first_process)
    assert found == {"before": size, "there": (0, size, 0), "reaches": True, "again": size}


def test_change_process_names_what_is_not_of_a_file(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.map_file(buffer, PAGE)
    iommufd.change_process()
    memory = ioas.map(DMABuffer(PAGE), iova=IOVA)
    with pytest.raises(IoctlError, match=f"{IOVA:#x}") as caught:
        iommufd.change_process()
    assert caught.value.errno == errno.EINVAL
    assert "map_file" in str(caught.value)
    memory.unmap()
    iommufd.change_process()


# IOMMUFD.vfio_ioas


def test_vfio_ioas(iommufd: IOMMUFD) -> None:
    assert iommufd.vfio_ioas is None
    first, second = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    for one in (first, second, None, first):
        iommufd.vfio_ioas = one
        assert _vfio_ioas(iommufd) is one
    first.close()
    assert _vfio_ioas(iommufd) is None
    iommufd.vfio_ioas = second
    iommufd.vfio_ioas = None
    assert _vfio_ioas(iommufd) is None
    with pytest.raises(TypeError, match="IOAS"):
        setattr(iommufd, "vfio_ioas", 5)  # noqa: B010
    with IOMMUFD() as other, pytest.raises(ValueError, match="another"):
        iommufd.vfio_ioas = other.alloc_ioas()


def _vfio_ioas(iommufd: IOMMUFD) -> IOAS | None:
    return iommufd.vfio_ioas  # asked anew: a type checker takes it for what was set


# Devices without an IOMMU


def test_physical_addresses_are_not_to_be_had_behind_an_iommu(device: Device, ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.map_file(buffer, len(buffer), iova=IOVA)
    device.attach(ioas)
    with pytest.raises(UnsupportedError, match="NOIOMMU_GET_PA"):
        ioas.physical_address(IOVA)
    for iova, length in ((-1, 1), (0, 0), (1 << 64, 1)):
        with pytest.raises(ValueError, match="range"):
            ioas.physical_address(iova, length)
