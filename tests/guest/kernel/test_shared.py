"""One iommufd, used by two objects of a process, or by two processes: what is reported, and what is true."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    Claim,
    Device,
    DeviceFile,
    DMABuffer,
    DMAChange,
    HostDevice,
    NotFoundError,
    Verdict,
    uapi,
)
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.uapi import raw
from tests import by_id
from tests.guest.dma import IOVA, Arrives
from tests.opcodes import opcodes


@dataclass(frozen=True)
class ReportedChange:
    """What a `DMAChange` says."""

    kind: str
    verdict: str
    devices: tuple[str, ...]

    @classmethod
    def from_change(cls, change: DMAChange) -> ReportedChange:
        return cls(change.kind, change.verdict, tuple(one.name for one in change.devices))


class Other(Protocol):
    """Whoever else uses the iommufd: it has bound the peer, and attaches it to what is ``vfio_ioas`` by then."""

    def __call__(self, action: str) -> ReportedChange:
        """Do it: bind_change, attach, replace, detach."""


class Local:
    """An object of this process: the first itself, or a second one."""

    def __init__(self, iommufd: IOMMUFD, peer: HostDevice) -> None:
        self._iommufd = iommufd
        self._device = iommufd.bind(peer)

    def __call__(self, action: str) -> ReportedChange:
        if action == "bind_change":
            return ReportedChange.from_change(self._device.bind_change)
        arguments = () if action == "detach" else (self._iommufd.vfio_ioas,)
        return ReportedChange.from_change(getattr(self._device, action)(*arguments))


class Process:
    """Another process, which got the fd over a socket."""

    def __init__(self, iommufd: IOMMUFD, peer: HostDevice, stack: ExitStack) -> None:
        self._ours, theirs = socket.socketpair()
        stack.enter_context(self._ours)
        program = str(Path(__file__).with_name("other_process.py"))
        with theirs:
            command = [sys.executable, program, str(theirs.fileno()), peer.name]
            process = stack.enter_context(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
        stack.callback(process.wait)
        stack.callback(self._ours.shutdown, socket.SHUT_RDWR)
        socket.send_fds(self._ours, [b"f"], [iommufd.fileno()])
        self._answers = stack.enter_context(self._ours.makefile())

    def __call__(self, action: str) -> ReportedChange:
        self._ours.sendall(action.encode() + b"\n")
        kind, verdict, devices = json.loads(self._answers.readline())
        return ReportedChange(kind, verdict, tuple(devices))


HOLDERS = ("the same object", "a second object", "a second process")


@pytest.fixture(params=HOLDERS)
def holder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def other(holder: str, device: Device, iommufd: IOMMUFD, peer: HostDevice) -> Iterator[Other]:
    with ExitStack() as stack:
        if holder == "a second process":
            yield Process(iommufd, peer, stack)
        elif holder == "a second object":
            yield Local(stack.enter_context(IOMMUFD.from_fd(os.dup(iommufd.fileno()))), peer)
        else:
            yield Local(iommufd, peer)


# What the peer's bind, attach, replace and detach, and then the first device's own detach, report; in this order.
UNKNOWN, KNOWN = str(Verdict.UNKNOWN), str(Verdict.KNOWN)
TABLE = {
    # Alone with the iommufd: all is known.
    "the same object": [
        ("noop", KNOWN, False), ("join", KNOWN, False), ("replace", KNOWN, True), ("detach", KNOWN, False),
        ("detach", KNOWN, True),
    ],
    # What this process did is known. That nobody else did something is not, since the fd has been given away.
    "a second object": [
        ("noop", KNOWN, False), ("join", KNOWN, False), ("replace", UNKNOWN, True), ("detach", KNOWN, False),
        ("detach", UNKNOWN, True),
    ],
    # The other process knows nothing of this one: it may always have been the first, or the last.
    "a second process": [
        ("first", UNKNOWN, True), ("first", UNKNOWN, True), ("replace", UNKNOWN, True), ("detach", UNKNOWN, True),
        ("detach", UNKNOWN, True),
    ],
}  # fmt: skip


def test_what_is_reported_and_what_is_true(
    device: Device,
    edu: EduDriver,
    iommufd: IOMMUFD,
    ioas: IOAS,
    buffer: DMABuffer,
    other: Other,
    holder: str,
    arrives: Arrives,
) -> None:
    assert device.host.group is not None
    members = {one.name for one in device.host.group.devices}
    elsewhere, second = iommufd.alloc_ioas(), DMABuffer(4096)
    ioas.map(buffer, iova=IOVA)
    elsewhere.map(second, iova=IOVA)

    def reached() -> tuple[bool, bool]:
        """Which of the two address spaces the first device's DMA goes to: the truth."""
        return arrives(edu, buffer), arrives(edu, second)

    reports: list[tuple[str, str, bool]] = []

    def act(action: Callable[[], ReportedChange]) -> tuple[bool, bool]:
        """One action, and where the DMA goes afterwards; what is said to be known has to be so."""
        before = reached()
        reported = action()
        after = reached()
        assert set(reported.devices) in (set(), members)
        if reported.verdict == KNOWN:
            assert (before != after) == bool(reported.devices), reported
        else:
            assert reported.devices, "what may have changed is named"
        reports.append((reported.kind, reported.verdict, bool(reported.devices)))
        return after

    # The bind of the peer was made by the fixture: the first device was bound by then, and blocked.
    bound = other("bind_change")
    reports.append((bound.kind, bound.verdict, bool(bound.devices)))
    assert reached() == (False, False)
    device.attach(ioas)
    iommufd.vfio_ioas = ioas
    assert act(lambda: other("attach")) == (True, False)
    iommufd.vfio_ioas = elsewhere
    assert act(lambda: other("replace")) == (False, True)
    # The worst case: the peer leaves, and the first device's DMA goes on.
    assert act(lambda: other("detach")) == (False, True)
    assert act(lambda: ReportedChange.from_change(device.detach())) == (False, False)
    assert reports == TABLE[holder]


def test_the_last_to_leave_is_never_sure_of_a_shared_one(
    device: Device, edu: EduDriver, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer, other: Other, holder: str,
    arrives: Arrives,
) -> None:  # fmt: skip
    """The other stays attached while this one leaves, and its own memory is reached all the same."""
    ioas.map(buffer, iova=IOVA)
    device.attach(ioas)
    iommufd.vfio_ioas = ioas
    other("attach")
    change = device.detach()
    assert arrives(edu, buffer)
    assert (change.verdict, bool(change.devices)) == (
        (Verdict.UNKNOWN, True) if holder == "a second process" else (Verdict.KNOWN, False)
    )
    last = other("detach")
    assert not arrives(edu, buffer)
    assert last.devices


def test_what_another_object_has_made_is_not_borrowed(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    """It is found, and stays the other's to close."""
    mapping = ioas.map(buffer, iova=IOVA)
    iommufd.vfio_ioas = ioas
    with IOMMUFD.from_fd(os.dup(iommufd.fileno())) as second:
        assert second.vfio_ioas is ioas
        assert second.objects == ()
    assert mapping.mapped
    ioas.map(buffer, iova=2 * IOVA)


def test_an_address_space_of_another_process_is_borrowed(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    """It is found, used and let go of; what was mapped there by the borrower is unmapped."""
    ioas.map(buffer, iova=IOVA)
    iommufd.vfio_ioas = ioas
    program = """
import sys
from pyiommufd import DMABuffer, IOMMUFD
with IOMMUFD.from_fd(int(sys.argv[1])) as iommufd:
    ioas = iommufd.vfio_ioas
    assert iommufd.objects == (ioas,)
    ioas.map(DMABuffer(4096), iova=0x200000)
"""
    fd = os.dup(iommufd.fileno())
    subprocess.run([sys.executable, "-c", program, str(fd)], pass_fds=[fd], check=True)
    os.close(fd)
    with pytest.raises(NotFoundError):
        ioas.unmap(0x200000, 4096)
    assert ioas.unmap_all() == len(buffer)


def test_two_objects_may_use_each_others(
    claimed: Claim, device: Device, peer: HostDevice, iommufd: IOMMUFD, ioas: IOAS
) -> None:
    with IOMMUFD.from_fd(os.dup(iommufd.fileno())) as second:
        bound = second.bind(peer)
        bound.attach(ioas)
        assert list(ioas.users) == [bound]
        assert bound.page_table is ioas
    assert list(ioas.users) == []
    with IOMMUFD() as stranger, pytest.raises(ValueError, match="another IOMMUFD"):
        device.attach(stranger.alloc_ioas())


def test_a_device_whose_fd_is_given_away_is_certain_of_nothing(
    device: Device, peer_device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    """Whoever has the fd of the first can detach it: then the second is the last."""
    ioas.map(buffer, iova=IOVA)
    device.attach(ioas)
    assert peer_device.attach(ioas).verdict is Verdict.KNOWN
    raw.ioctl(
        device.fileno(),
        uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
        raw.struct("vfio_device_detach_iommufd_pt", argsz=8),
    )
    assert arrives(edu, buffer)
    change = peer_device.detach()
    assert not arrives(edu, buffer)
    assert (change.verdict, bool(change.devices)) == (Verdict.UNKNOWN, True)


def test_a_file_that_others_have_makes_the_iommufd_shared(claimed: Claim, iommufd: IOMMUFD, peer: HostDevice) -> None:
    with DeviceFile(peer) as mine:
        file = DeviceFile.from_fd(os.dup(mine.fileno()))
    assert not iommufd.shared
    iommufd.bind(file)
    assert iommufd.shared


def test_a_refused_unmap_knows_what_is_gone(iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    """The kernel stops at a mapping that the range cuts, here one of which this object knows nothing."""
    page = mmap.PAGESIZE
    below = ioas.map(memoryview(buffer)[:page], iova=IOVA)
    by_id.map_memory(iommufd.fileno(), ioas.id, raw.address_of(buffer), 2 * page, IOVA + 4 * page)
    above = ioas.map(memoryview(buffer)[:page], iova=IOVA + 8 * page)
    cut = ioas.map(memoryview(buffer)[: 2 * page], iova=IOVA + 16 * page)
    with pytest.raises(NotFoundError):
        ioas.unmap(IOVA + 5 * page, 12 * page)
    assert (below.mapped, above.mapped, cut.mapped) == (True, True, True)
    with pytest.raises(NotFoundError):
        ioas.unmap(IOVA, 5 * page)
    # What was there is unmapped, and somebody else's by now.
    assert not below.mapped
    by_id.map_memory(iommufd.fileno(), ioas.id, raw.address_of(buffer), page, IOVA)
    below.unmap()
    assert by_id.unmap(iommufd.fileno(), ioas.id, IOVA, page) == page


def test_join_of_a_device_that_others_may_have_attached(device: Device, peer_device: Device, ioas: IOAS) -> None:
    """To the kernel it is a replace then, and moves all."""
    device.attach(ioas)
    elsewhere = device.iommufd.alloc_ioas()
    fd = os.dup(peer_device.fileno())
    raw.ioctl(
        fd,
        uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
        raw.struct("vfio_device_attach_iommufd_pt", argsz=12, pt_id=ioas.id),
    )
    os.close(fd)
    change = peer_device.attach(elsewhere)
    assert change.verdict is Verdict.UNKNOWN
    assert device.host in change.devices


def test_device_that_a_forked_child_has_too(device: Device, peer_device: Device, ioas: IOAS) -> None:
    """Closed here it stays attached, until the child has closed it as well: nothing is known to be blocked."""
    device.attach(ioas)
    peer_device.attach(ioas)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        device.close()
        change = peer_device.detach()
        assert (change.kind, change.verdict) == (ChangeKind.DETACH, Verdict.UNKNOWN)
        assert device.host in change.devices
    finally:
        os.close(reading)
        os.close(writing)
        os.waitpid(child, 0)


def test_change_that_a_signal_handler_comes_between(device: Device, peer_device: Device, ioas: IOAS) -> None:
    """It joins a group which by then nobody is attached in: the kernel moves all."""
    files = ("pyiommufd/kernel/device/attachable.py",)
    changes: list[DMAChange] = []
    joined: list[bool] = []

    def handler() -> None:
        joined.append(peer_device.page_table is None)
        device.detach()

    def attach() -> None:
        changes.append(peer_device.attach(ioas))

    def prepare() -> None:
        peer_device.detach()
        device.detach()
        device.attach(ioas)

    prepare()
    every, _ = opcodes(attach, files)
    seen = set()
    for stop in range(every):
        prepare()
        opcodes(attach, files, stop, handler, raises=False)
        (change,), changes[:] = changes[-1:], []
        before, joined[:] = joined[-1], []
        # From before the request on, all that is known has to be so.
        assert not before or change.verdict is Verdict.UNKNOWN or change.devices
        seen.add((before, change.verdict))
    assert {(True, Verdict.UNKNOWN), (False, Verdict.KNOWN)} <= seen


def test_borrowed_address_space_that_its_owner_has_destroyed(iommufd: IOMMUFD, buffer: DMABuffer) -> None:
    """Its id is another's by then, and so are the addresses."""
    command = raw.struct("iommu_ioas_alloc")
    raw.ioctl(iommufd.fileno(), uapi.IOMMU_IOAS_ALLOC, command)
    number = command.out_ioas_id
    request = raw.struct("iommu_vfio_ioas", ioas_id=number, op=uapi.IOMMU_VFIO_IOAS_SET)
    raw.ioctl(iommufd.fileno(), uapi.IOMMU_VFIO_IOAS, request)
    borrowed = iommufd.vfio_ioas
    assert borrowed is not None
    mapping = borrowed.map(buffer, iova=IOVA)
    by_id.destroy(iommufd, number)
    ioas = iommufd.alloc_ioas()
    assert ioas.id == number
    ioas.map(DMABuffer(4096), iova=IOVA)
    mapping.unmap()
    borrowed.close()
    buffer.close()
    assert borrowed.closed
    assert ioas.unmap_all() == 4096
