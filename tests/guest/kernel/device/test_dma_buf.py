"""BARs as dma-bufs: DMA of one device into another's registers, and what takes a BAR away from who has mapped it."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AccessDeniedError,
    Claim,
    ClosedError,
    Command,
    Device,
    DMABuffer,
    DMAMapping,
    ForkedError,
    HostDevice,
    IoctlError,
    UnsupportedError,
    Verdict,
)
from pyiommufd.host.holders import holders
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA
from tests.guest.heap import heap_dma_buf

PAGE = 4096
BAR = 0x500000
"""Where the exporter's registers are for the other device."""
REGISTER = 0x80
"""A register of an edu device that keeps what is written to it: the source of its transfers."""
COMMAND = 4

Reaches = Callable[[int], bool]

_fresh = itertools.count(0x1234_5678)


@pytest.fixture
def bar(lone_device: Device, device: Device, ioas: IOAS) -> DMAMapping:
    """A page of the exporter's registers, mapped for a device of another group."""
    lone_device.attach(ioas)
    with device.region(0).export_dma_buf(0, PAGE) as dma_buf:
        return ioas.map_file(dma_buf, dma_buf.size, iova=BAR)


@pytest.fixture
def reaches(lone_device: Device, device: Device, mapping: DMAMapping, buffer: DMABuffer) -> Iterator[Reaches]:
    """Whether the other device's DMA writes to the exporter's register, which is mapped at an address."""
    with EduDriver(lone_device) as driver, device.region(0).map(0, PAGE) as registers:

        def reaches(address: int) -> bool:
            value = next(_fresh)
            buffer[:8] = value.to_bytes(8, "little")
            driver.copy_in(IOVA, 8)
            driver.copy_out(address + REGISTER, 8)
            return registers.read64(REGISTER) == value

        yield reaches


def test_one_device_writes_to_the_registers_of_another(
    bar: DMAMapping, reaches: Reaches, lone_device: Device, buffer: DMABuffer
) -> None:
    assert reaches(BAR)
    assert not reaches(BAR + PAGE)
    with EduDriver(lone_device) as driver:
        driver.copy_in(BAR, 4)
        driver.copy_out(IOVA, 4)
    assert buffer[0] == 0xED
    assert not bar.revoked
    bar.unmap()
    assert not reaches(BAR)


def test_a_device_reaches_its_own_registers(lone_device: Device, ioas: IOAS, mapping: DMAMapping) -> None:
    """But for those of its DMA, which an edu device keeps as they are during a transfer."""
    lone_device.attach(ioas)
    ioas.map_file(lone_device.region(0).export_dma_buf(), PAGE, iova=BAR)
    with EduDriver(lone_device) as driver, lone_device.region(0).map() as registers:
        driver.copy_in(IOVA, 4)
        driver.copy_out(BAR + 4, 4)
        assert registers.read32(4) == 0xFFFF_FFFF


def _low_power(device: Device, peer: Device) -> None:
    del peer
    device.low_power.enter()
    device.low_power.exit()


def _another_process(device: Device, peer: Device) -> None:
    """It has got the fd, and writes to the command register."""
    del peer
    fd, where, command = device.fileno(), device.config.file_offset + COMMAND, device.config.command
    for value in (command & ~Command.MEMORY, command):
        program = f"import os; os.pwrite({fd}, ({int(value)}).to_bytes(2, 'little'), {where})"
        subprocess.run([sys.executable, "-c", program], pass_fds=[fd], check=True)


REVOKES: dict[str, Callable[[Device, Device], Any]] = {
    "hot reset": lambda device, peer: device.hot_reset(),
    "hot reset of a peer": lambda device, peer: peer.hot_reset(),
    "low power": _low_power,
    "another process": _another_process,
}


@pytest.mark.parametrize("way", REVOKES)
def test_revoked_for_good(
    bar: DMAMapping, reaches: Reaches, device: Device, peer_device: Device, ioas: IOAS, way: str
) -> None:
    dma_buf = device.region(0).export_dma_buf(0, PAGE)
    copied = ioas.copy_from(ioas, BAR, PAGE, dst_iova=2 * BAR)
    assert reaches(2 * BAR)
    assert (bar.revoked, copied.revoked) == (False, False)
    REVOKES[way](device, peer_device)
    assert (bar.revoked, copied.revoked) == (True, True)
    with pytest.raises(IoctlError, match=r"EINVAL.*\n.*has been revoked"):
        ioas.physical_address(BAR)
    assert "revoked" in repr(bar)
    assert not reaches(BAR)
    bar.unmap()
    assert not bar.revoked
    anew = ioas.map_file(dma_buf, PAGE, iova=BAR)
    assert not anew.revoked
    assert "revoked" not in repr(anew)
    assert reaches(BAR)
    assert copied.revoked


def test_memory_decode_turned_off_in_whatever_way(device: Device, ioas: IOAS) -> None:
    before = int(device.config.command)
    ways: list[Callable[[int], None]] = [
        lambda value: setattr(device, "memory_decode", bool(value & Command.MEMORY)),
        lambda value: device.config.set_command(Command.MEMORY, bool(value & Command.MEMORY)),
        lambda value: device.config.write16(COMMAND, value),
        lambda value: device.config.write(COMMAND, value.to_bytes(2, "little")),
        lambda value: device.region(7).write(COMMAND, value.to_bytes(2, "little")),
    ]
    dma_buf = device.region(0).export_dma_buf()
    for write in ways:
        with ioas.map_file(dma_buf, PAGE) as mapping:
            write(before & ~Command.MEMORY)
            assert mapping.revoked
            write(before)
            assert mapping.revoked


def test_while_revoked_it_cannot_be_mapped(device: Device, lone_device: Device, ioas: IOAS) -> None:
    dma_buf = device.region(0).export_dma_buf()
    device.memory_decode = False
    with pytest.raises(IoctlError) as caught:
        ioas.map_file(dma_buf, PAGE)
    assert caught.value.errno == errno.ENODEV
    assert caught.value.causes[0].summary.startswith("the dma-buf is revoked: ")
    assert "/dmabuf" in caught.value.causes[0].evidence
    made_now = device.region(0).export_dma_buf()
    with pytest.raises(IoctlError, match="revoked"):
        ioas.map_file(made_now, PAGE)
    device.memory_decode = True
    ioas.map_file(dma_buf, PAGE)
    ioas.map_file(made_now, PAGE)


def test_a_revoked_mapping_is_in_nobodys_way(
    bar: DMAMapping, reaches: Reaches, device: Device, peer_device: Device, ioas: IOAS, buffer: DMABuffer
) -> None:
    """The kernel leaves it out of page tables that are made for its address space from then on."""
    device.hot_reset()
    assert bar.revoked
    assert peer_device.preview_attach(ioas).verdict is not Verdict.REFUSED
    peer_device.attach(ioas)
    with EduDriver(peer_device) as driver:
        buffer[:8] = b"by memory"[:8]
        driver.copy_in(IOVA, 8)
        driver.copy_out(IOVA + PAGE, 8)
        assert buffer[PAGE : PAGE + 8] == buffer[:8]
    peer_device.detach()
    peer_device.alloc_hwpt(ioas).close()
    ioas.map_many(buffer, [(0, PAGE, None), (PAGE, PAGE, None)]).unmap()
    other = device.iommufd.alloc_ioas()
    assert other.copy_from(ioas, BAR, PAGE).revoked
    other.close()
    assert ioas.unmap_all() == PAGE + len(buffer)
    assert not bar.revoked


def test_closing_the_exporter_revokes_and_is_not_held_up(
    bar: DMAMapping, ioas: IOAS, device: Device, lone_device: Device, first: HostDevice
) -> None:
    dma_buf = device.region(0).export_dma_buf()
    copy = os.dup(dma_buf.fileno())
    try:
        device.close()
        assert dma_buf.closed
        assert bar.revoked
        assert holders(first.refreshed()) == ()
        with pytest.raises(ClosedError):
            dma_buf.fileno()
        with device.iommufd.bind(first) as again:
            with pytest.raises(IoctlError) as caught:
                ioas.map_file(copy, PAGE)
            assert caught.value.errno == errno.ENODEV
            assert bar.revoked
            with again.region(0).export_dma_buf() as other:
                assert not ioas.map_file(other, PAGE).revoked
        assert ioas.unmap_all() == 2 * PAGE
    finally:
        os.close(copy)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1, PAGE), ValueError),
        ((0, 1), ValueError),
        ((0, 0), ValueError),
        ((1 << 20, None), ValueError),
        ((-PAGE, PAGE), ValueError),
        ((PAGE, 1 << 20), ValueError),
        (("0", PAGE), TypeError),
        ((0, 4096.0), TypeError),
    ],
)
def test_wrong_ranges(device: Device, arguments: tuple[Any, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        device.region(0).export_dma_buf(*arguments)
    assert not device._children


@pytest.mark.parametrize("index", [1, 6, 7])
def test_what_is_no_bar(device: Device, index: int) -> None:
    with pytest.raises(UnsupportedError, match="only a BAR can be a dma-buf"):
        device.region(index).export_dma_buf()


def test_parts_and_all_of_a_bar(device: Device) -> None:
    bar = device.region(0)
    with bar.export_dma_buf() as whole, bar.export_dma_buf(PAGE) as rest:
        assert (whole.offset, whole.size, whole.region) == (0, bar.size, bar)
        assert (rest.offset, rest.size) == (PAGE, bar.size - PAGE)
        assert os.lseek(whole.fileno(), 0, os.SEEK_END) == bar.size
        assert os.lseek(rest.fileno(), 0, os.SEEK_END) == bar.size - PAGE
        assert repr(rest) == f"<DMABuf 0x1000..0xfffff of <Region 0 of {device.name}>>"
        assert len(device._children) == 2
    assert repr(rest) == f"<DMABuf 0x1000..0xfffff of <Region 0 of {device.name}> closed>"
    assert not device._children


def test_memory_of_a_dma_buf_heap_is_refused(ioas: IOAS) -> None:
    with heap_dma_buf(PAGE) as fd, pytest.raises(UnsupportedError) as caught:
        ioas.map_file(fd, PAGE)
    (cause,) = caught.value.causes
    assert "no single range of a vfio device's BAR" in cause.summary
    assert "of system" in cause.evidence
    assert "export_dma_buf" in cause.fix


def test_only_who_may_is_told(bar: DMAMapping, mapping: DMAMapping) -> None:
    os.seteuid(65534)
    try:
        assert not mapping.revoked  # of memory: nobody is asked
        with pytest.raises(AccessDeniedError, match="CAP_SYS_RAWIO"):
            bool(bar.revoked)
        assert repr(bar).endswith("of a dma-buf>")
    finally:
        os.seteuid(0)
    assert not bar.revoked


def test_change_process_names_it(iommufd: IOMMUFD, bar: DMAMapping) -> None:
    with pytest.raises(IoctlError, match="of a dma-buf") as caught:
        iommufd.change_process()
    assert caught.value.errno == errno.EINVAL
    bar.unmap()
    iommufd.change_process()


def test_forked_child(claimed: Claim, device: Device, bar: DMAMapping, in_child: Callable[..., Any]) -> None:
    region = device.region(0)
    dma_buf = region.export_dma_buf()
    fd = dma_buf.fileno()

    def child() -> tuple[bool, bool]:
        for use in (dma_buf.fileno, region.export_dma_buf, lambda: bar.revoked):
            with pytest.raises(ForkedError):
                use()
        path = Path(f"/proc/self/fd/{fd}")
        before = str(path.readlink())
        device.close()
        return before.startswith("/dmabuf"), os.path.lexists(path)

    assert in_child(child) == (True, False)
    assert not dma_buf.closed
    assert not bar.revoked
