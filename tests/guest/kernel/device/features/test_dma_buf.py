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
    DMABuf,
    DMABuffer,
    DMAMapping,
    ForkedError,
    HostDevice,
    IoctlError,
    UnsupportedError,
    Verdict,
    Window,
)
from pyiommufd.host.holders import holders
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA
from tests.guest.heap import heap_dma_buf
from tests.opcodes import opcodes
from tests.sweeps import sample

PAGE = 4096
BAR = 0x500000
"""Where the exporter's registers are for the other device."""
REGISTER = 0x80
"""A register of an edu device that keeps what is written to it: the source of its transfers."""
COMMAND = 4
FILES = ("pyiommufd/kernel/", "pyiommufd/uapi/", "pyiommufd/closing.py")

Reaches = Callable[[int], bool]

_fresh = itertools.count(0x1234_5678)


@pytest.fixture
def bar(lone_device: Device, device: Device, ioas: IOAS) -> DMAMapping:
    """A page of the exporter's registers, mapped for a device of another group."""
    lone_device.attach(ioas)
    with device.region(0).export_dma_buf(0, PAGE) as dma_buf:
        return ioas.map_file(dma_buf, dma_buf.size, iova=BAR)


@pytest.fixture
def dma_buf(device: Device) -> Iterator[DMABuf]:
    """All of the exporter's BAR 0."""
    with device.region(0).export_dma_buf() as dma_buf:
        yield dma_buf


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
    with lone_device.region(0).export_dma_buf() as dma_buf:
        ioas.map_file(dma_buf, PAGE, iova=BAR)
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
    bar: DMAMapping, reaches: Reaches, device: Device, peer_device: Device, ioas: IOAS, dma_buf: DMABuf, way: str
) -> None:
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


def test_memory_decode_turned_off_in_whatever_way(device: Device, ioas: IOAS, dma_buf: DMABuf) -> None:
    before = int(device.config.command)
    ways: list[Callable[[int], None]] = [
        lambda value: setattr(device, "memory_decode", bool(value & Command.MEMORY)),
        lambda value: device.config.set_command(Command.MEMORY, bool(value & Command.MEMORY)),
        lambda value: device.config.write16(COMMAND, value),
        lambda value: device.config.write(COMMAND, value.to_bytes(2, "little")),
        lambda value: device.region(7).write(COMMAND, value.to_bytes(2, "little")),
    ]
    for write in ways:
        with ioas.map_file(dma_buf, PAGE) as mapping:
            write(before & ~Command.MEMORY)
            assert mapping.revoked
            write(before)
            assert mapping.revoked


def test_while_revoked_it_cannot_be_mapped(device: Device, ioas: IOAS, dma_buf: DMABuf) -> None:
    device.memory_decode = False
    with pytest.raises(IoctlError) as caught:
        ioas.map_file(dma_buf, PAGE)
    assert caught.value.errno == errno.ENODEV
    assert caught.value.causes[0].summary.startswith("the dma-buf is revoked: ")
    assert "/dmabuf" in caught.value.causes[0].evidence
    with device.region(0).export_dma_buf() as made_now:
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


def test_what_is_no_number_is_named(device: Device) -> None:
    bar, config = device.region(0), device.config
    uses: dict[str, list[Callable[[Any], object]]] = {
        "offset": [
            bar.export_dma_buf,
            bar.map,
            lambda one: bar.read(one, 4),
            lambda one: bar.write(one, b""),
            lambda one: bar.ioeventfd(one, 4, 1),
            lambda one: config.write8(one, 0),
            lambda one: bar.map().read(one, 4),
            lambda one: bar.map().write32(one, 4),
            lambda one: bar.map().read64(one),
        ],
        "length": [lambda one: bar.export_dma_buf(0, one), lambda one: bar.map(0, one)],
        "size": [lambda one: bar.read(0, one)],
        "value": [lambda one: bar.map().write32(0, one), lambda one: config.write8(0, one)],
    }
    for name, calls in uses.items():
        for call in calls:
            with pytest.raises(TypeError, match=f"^{name} is an int, not '0'$"):
                call("0")


@pytest.mark.parametrize(
    ("index", "why"), [(1, "has no region 1"), (6, "has no region 6"), (7, "only a BAR can be a dma-buf")]
)
def test_what_is_no_bar(device: Device, index: int, why: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        device.region(index).export_dma_buf()
    (cause,) = caught.value.causes
    assert why in cause.summary
    assert str(caught.value).splitlines()[1].strip() == str(cause)


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
    del whole, rest
    assert not device._children


def _mapped() -> bool:
    return "/dev/vfio/" in Path("/proc/self/maps").read_text()


def _dma_bufs() -> list[str]:
    links = (os.path.realpath(one) for one in Path("/proc/self/fd").iterdir())
    return [link for link in links if "/dmabuf" in link]


def test_what_is_dropped_is_closed(device: Device) -> None:
    """A dma-buf warns, as it has an fd; a window is only unmapped."""
    made: list[DMABuf | Window] = [device.region(0).export_dma_buf()]
    assert len(_dma_bufs()) == 1
    with pytest.warns(ResourceWarning, match="unclosed <DMABuf "):
        made.clear()
    assert not _dma_bufs()
    made.append(device.region(0).map())
    assert _mapped()
    made.clear()
    assert not _mapped()
    assert not device._children


# Of what was made and not yet given to anybody.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["export_dma_buf", "map"])
def test_nothing_is_left_of_what_a_signal_handler_interrupts(device: Device, name: str) -> None:
    make, made = getattr(device.region(0), name), list[DMABuf | Window]()

    def act() -> None:
        made.append(make())

    every, _ = opcodes(act, FILES)
    made.pop().close()
    assert every > 50
    for stop in sample(f"device.children[{name}]", range(every), 20):
        opcodes(act, FILES, stop)
        assert (len(made), len(device._children), len(_dma_bufs()), _mapped()) == (0, 0, 0, False)


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


def test_forked_child(
    claimed: Claim, device: Device, bar: DMAMapping, dma_buf: DMABuf, in_child: Callable[..., Any]
) -> None:
    region = device.region(0)
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
