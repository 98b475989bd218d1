"""What goes wrong outside the library: nodes missing or taken, addresses in use, limits, signals, forks, threads."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AccessDeniedError,
    AlreadyMappedError,
    BusyError,
    Claim,
    Device,
    DeviceFile,
    DMABuffer,
    DMAMapping,
    HostDevice,
    IoctlError,
    NotFoundError,
    Verdict,
)
from pyiommufd.kernel.mapping import DMAMappings
from pyiommufd.testing.edu import EduDriver
from pyiommufd.testing.leaks import LeakCheck
from pyiommufd.uapi import ioctls

IOVA = 0x100000
PAGE = mmap.PAGESIZE
NOBODY = 65534
TOP = 1 << 64

Arrives = Callable[[EduDriver, DMABuffer], bool]


# Nodes


def test_iommufd_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "iommu", tmp_path / "no" / "folder"):
        with pytest.raises(NotFoundError) as caught:
            IOMMUFD(path)
        assert caught.value.errno == errno.ENOENT
        # The kernel of this machine has it: what is missing is the node.
        assert f"there is no {path} here" in str(caught.value)
        assert "container" in caught.value.causes[0].fix


def test_node_of_a_driver_that_is_not_there(tmp_path: Path) -> None:
    node = tmp_path / "iommu"
    os.mknod(node, 0o600 | 0o020000, os.makedev(240, 77))  # of the local majors, used by nothing
    with pytest.raises(IoctlError) as caught:
        IOMMUFD(node)
    assert caught.value.errno in (errno.ENODEV, errno.ENXIO)
    assert str(node) in str(caught.value)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """With the rights of another user, capabilities included, in this process."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_nodes_that_may_not_be_opened(claimed: Claim, first: HostDevice, iommufd: IOMMUFD) -> None:
    with as_nobody():
        with pytest.raises(AccessDeniedError) as caught:
            IOMMUFD()
        # By name and not by snapshot, as a user would.
        with pytest.raises(AccessDeniedError) as node:
            iommufd.bind(first.name)
    cdev = first.refreshed().vfio_cdev
    for error, path in ((caught.value, "/dev/iommu"), (node.value, cdev)):
        assert error.errno == errno.EACCES
        assert f"user {NOBODY} may not open {path}" in str(error)
        assert "mode 0660, owner 0" in str(error) or "mode 0600, owner 0" in str(error)
        assert "udev" in error.causes[0].fix
    assert iommufd.objects == ()
    iommufd.bind(first).close()


def test_device_open_through_another_fd_here(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    here = DeviceFile(first)
    with iommufd.bind(first) as bound:
        # The node may be opened more than once; bound it can be through one alone.
        with pytest.raises(IoctlError) as caught:
            iommufd.bind(here)
        assert caught.value.errno == errno.EINVAL
        assert f"pid {os.getpid()}" in str(caught.value)
        assert f"fd {bound.fileno()}" in str(caught.value)
        assert here.fileno() >= 0
    device = iommufd.bind(here)
    assert here.closed
    device.close()


def test_device_bound_by_another_process(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    program = (
        "import sys\nfrom pyiommufd import IOMMUFD\nwith IOMMUFD() as iommufd:\n"
        "    iommufd.bind(sys.argv[1])\n    print('bound', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, first.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "bound\n"
        with pytest.raises(IoctlError) as caught:
            iommufd.bind(first)
        assert f"pid {other.pid} " in str(caught.value)
        assert iommufd.objects == ()
        other.stdin.close()
        assert other.wait(60) == 0
    iommufd.bind(first).close()


# Addresses


def test_every_kind_of_overlap_is_refused_and_changes_nothing(device: Device, ioas: IOAS, arrives: Arrives) -> None:
    device.attach(ioas)
    middle = DMABuffer(4 * PAGE)
    mapping = ioas.map(middle, iova=IOVA)
    other = DMABuffer(16 * PAGE)
    view = memoryview(other)
    for start, size in ((0, 4), (-1, 2), (3, 2), (1, 2), (-2, 16), (0, 1), (3, 1)):
        with pytest.raises(AlreadyMappedError) as caught:
            ioas.map(view[: size * PAGE], iova=IOVA + start * PAGE)
        assert caught.value.errno == errno.EEXIST
        assert f"{IOVA:#x}..{IOVA + 4 * PAGE - 1:#x}" in str(caught.value)
    assert ioas.mappings == (mapping,)
    with EduDriver(device) as edu:
        assert arrives(edu, middle)
    view.release()
    del caught  # whose traceback has the view
    other.close()
    assert ioas.unmap_all() == 4 * PAGE


@pytest.mark.parametrize("attached", [False, True])
def test_the_ends_of_the_address_space(device: Device, ioas: IOAS, attached: bool) -> None:
    if attached:
        device.attach(ioas)
    last = ioas.iova_ranges()[-1].last
    buffer = DMABuffer(2 * PAGE)
    page = memoryview(buffer)[:PAGE]
    # The first page and the last one are addresses like others.
    low = ioas.map(page, iova=0)
    assert low.iova == 0
    high = ioas.map(page, iova=last + 1 - PAGE)
    assert high.iova == last + 1 - PAGE
    high.unmap()
    for iova in (TOP - PAGE, TOP - 2 * PAGE):
        with contextlib.suppress(IoctlError):
            ioas.map(buffer, iova=iova).unmap()
    for iova in (TOP, TOP - 1, last):
        with pytest.raises(ValueError, match=r"64 bits|page boundary"):
            ioas.map(page, iova=iova)
    # All is gone by the range that says "everything", in the record as in the kernel.
    with contextlib.suppress(IoctlError):
        ioas.map(page, iova=TOP - PAGE)
    assert ioas.unmap(0, TOP - 1) in (PAGE, 2 * PAGE)
    assert ioas.mappings == ()
    page.release()
    buffer.close()


def test_reserved_and_unreachable_addresses(device: Device, ioas: IOAS, first: HostDevice) -> None:
    device.attach(ioas)
    group = first.group
    assert group is not None
    buffer = DMABuffer(PAGE)
    reserved = [region for region in group.reserved_regions if region.type != "direct-relaxable"]
    assert reserved
    for region in reserved:
        for iova in (region.start, region.start + PAGE, region.last + 1 - PAGE):
            with pytest.raises(IoctlError, match="reserved") as caught:
                ioas.map(buffer, iova=iova)
            assert caught.value.errno == errno.EINVAL
        # Right before it and right after it there is room.
        ioas.map(buffer, iova=region.start - PAGE).unmap()
        if region.last + 1 < ioas.iova_ranges()[-1].last:
            ioas.map(buffer, iova=region.last + 1).unmap()
    beyond = ioas.iova_ranges()[-1].last + 1
    with pytest.raises(IoctlError, match="reach") as caught:
        ioas.map(buffer, iova=beyond)
    assert caught.value.errno == errno.EINVAL
    assert ioas.unmap_all() == 0
    del caught  # whose traceback has the memory
    buffer.close()


def test_mapped_too_high_for_the_device_is_refused_by_the_attach_that_names_it(device: Device, ioas: IOAS) -> None:
    good = ioas.map(DMABuffer(PAGE), iova=IOVA)
    high = ioas.map(DMABuffer(PAGE), iova=1 << 60)
    preview = device.preview_attach(ioas)
    assert preview.verdict is Verdict.REFUSED
    with pytest.raises(IoctlError) as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EADDRINUSE
    assert f"{1 << 60:#x}" in str(caught.value)
    assert f"{IOVA:#x}.." not in str(caught.value)
    high.unmap()
    device.attach(ioas)
    assert ioas.mappings == (good,)


# Memory


LIMITED = """
import errno, os, resource, sys
from pyiommufd import DMABuffer, DeviceFile, IoctlError, IOMMUFD
iommufd, node, limit = IOMMUFD.from_fd(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
# Here rather than by whoever starts it: the interpreter itself may be in a folder of root's.
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
device = iommufd.bind(DeviceFile.from_fd(node))
ioas = iommufd.alloc_ioas()
device.attach(ioas)
fits, rest = DMABuffer(limit // 2), DMABuffer(limit)
with ioas.map(fits, iova=0x100000):
    for what in ("iova", "many"):
        try:
            if what == "iova":
                ioas.map(rest, iova=0x1000000)
            else:
                ioas.map_many(rest, [(0, limit // 2, 0x1000000), (limit // 2, limit // 2, 0x2000000)])
        except IoctlError as error:
            print(what, errno.errorcode[error.errno], error)
        else:
            print("mapped more than the limit")
    print("left", len(ioas.mappings))
# What was given back counts no more.
ioas.map(fits, iova=0x1000000).unmap()
rest.close()
print("unmapped", ioas.unmap_all())
device.detach()
# Before a device is attached nothing is pinned, and nothing counts: the attach is what fails.
late = iommufd.alloc_ioas()
large = DMABuffer(2 * limit)
late.map(large, iova=0x1000000)
try:
    device.attach(late)
except IoctlError as error:
    print("attach", errno.errorcode[error.errno], error)
print("attached to", device.page_table)
iommufd.close()
"""


def test_limit_on_locked_memory_for_a_user_without_privileges(claimed: Claim, first: HostDevice) -> None:
    """Another user, who was handed the two fds, may pin as much as RLIMIT_MEMLOCK says, and is told so."""
    limit = 1 << 20
    with IOMMUFD() as iommufd, DeviceFile(first) as file:
        fds = (iommufd.fileno(), file.fileno())
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, *map(str, fds), str(limit)],
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert out.count("ENOMEM") >= 3, out
    for what in ("iova", "many", "attach"):
        assert f"{what} ENOMEM" in out
    assert f"locked memory is limited to {limit:#x} bytes" in out
    assert "ulimit -l" in out
    assert "mapped more" not in out
    assert "left 1\n" in out
    assert "unmapped 0\n" in out
    assert "attached to None\n" in out
    # The error of the attach names what did not fit.
    assert "0x1000000..0x11fffff" in out


def test_root_pins_what_it_likes(device: Device, ioas: IOAS) -> None:
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, before[1]))
    try:
        device.attach(ioas)
        with ioas.map(DMABuffer(64 * PAGE)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def test_truncated_memfd_is_named_by_the_attach(device: Device, edu: EduDriver, ioas: IOAS, arrives: Arrives) -> None:
    good = DMABuffer(PAGE)
    ioas.map(good, iova=IOVA)
    short = DMABuffer(4 * PAGE, memfd=True)
    mapping = ioas.map(short, iova=4 * IOVA)
    os.ftruncate(short.fileno(), 0)
    preview = device.preview_attach(ioas)
    assert preview.verdict is Verdict.REFUSED
    with pytest.raises(IoctlError) as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EFAULT
    for text in (str(caught.value), " ".join(preview.reasons)):
        assert f"{4 * IOVA:#x}..{4 * IOVA + 4 * PAGE - 1:#x}" in text
        assert f"{IOVA:#x}..{IOVA + PAGE - 1:#x}" not in text
    assert device.page_table is None
    assert not arrives(edu, good)
    mapping.unmap()
    device.attach(ioas)
    assert arrives(edu, good)


def test_memfd_truncated_while_a_device_reaches_it_leaves_the_device_on_the_old_pages(
    device: Device, edu: EduDriver, ioas: IOAS
) -> None:
    device.attach(ioas)
    buffer = DMABuffer(PAGE, memfd=True)
    ioas.map(buffer, iova=IOVA)
    buffer[:4] = b"kept"
    os.ftruncate(buffer.fileno(), 0)
    result = DMABuffer(PAGE)
    ioas.map(result, iova=2 * IOVA)
    edu.copy_in(IOVA, 4)
    edu.copy_out(2 * IOVA, 4)
    assert result[:4] == b"kept"
    assert ioas.unmap_all() == 2 * PAGE
    buffer.close()


# Signals


class Interrupt(BaseException):
    """Raised by a signal handler, as KeyboardInterrupt is."""


@contextlib.contextmanager
def timer(seconds: float) -> Iterator[None]:
    """Have a signal handler raise once, after that time, unless the block is left before."""
    armed = True

    def handler(number: int, frame: FrameType | None) -> None:
        if armed:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def known(ioas: IOAS) -> int:
    """Bytes that are mapped according to the record."""
    return sum(mapping.length for mapping in ioas.mappings)


@pytest.mark.parametrize("attached", [False, True])
def test_interrupted_maps_and_unmaps_are_known_or_undone(device: Device, ioas: IOAS, attached: bool) -> None:
    """Hundreds of loops, cut short at another moment each: what the kernel has mapped is what the record says."""
    if attached:
        device.attach(ioas)
    buffer = DMABuffer(1 << 20)
    view = memoryview(buffer)
    pieces = [(at * PAGE, PAGE, 64 * IOVA + 2 * at * PAGE) for at in range(256)]
    source = ioas.map(DMABuffer(4 * PAGE), iova=32 * IOVA)
    interrupted = 0
    for turn in range(300):
        made: list[DMAMapping | DMAMappings] = []
        try:
            # From at once to well after the loop's end.
            with timer(0.0002 + 0.00004 * turn):
                for at in range(16):
                    made.append(ioas.map(view[at * PAGE : (at + 8) * PAGE], iova=IOVA + 16 * at * PAGE))
                    made.append(ioas.map(view[: 8 * PAGE]))
                    if at == 8:
                        made.append(ioas.map_many(buffer, pieces))
                    if at % 4 == 0:
                        made.append(ioas.copy_from(ioas, source.iova, PAGE))
                    made.append(ioas.map(view[:PAGE], below=1 << 27))
                    if at % 3 == 2:
                        made.pop(0).unmap()
        except Interrupt:
            interrupted += 1
        assert set(made) <= set(ioas.mappings) | {one for one in made if not one.mapped}
        assert all(one.iova >= 0 for one in ioas.table if isinstance(one, DMAMapping)), "an address that is not known"
        expected = known(ioas)
        # In the kernel: as many bytes, no more and no fewer.
        assert ioas.unmap_all() == expected, f"turn {turn}"
        assert len(ioas.table) == 0
        # At the place of the last one that was fixed there is room, or EEXIST would say so.
        ioas.map(view[: 8 * PAGE], iova=IOVA).unmap()
        source = ioas.map(DMABuffer(4 * PAGE), iova=32 * IOVA)
    assert interrupted > 50
    view.release()
    source.unmap()
    buffer.close()


# Of files of sysfs whose reading was cut short.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_rounds_leave_nothing(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    """A timer over bind, attach, map, detach and close: whatever was cut short can be closed and done again."""
    buffer = DMABuffer(PAGE)
    check = LeakCheck()
    interrupted = 0
    for turn in range(60):
        # Opened before: what os.open returns is lost, to any Python program, where a handler raises just then.
        file = DeviceFile(first)
        try:
            with timer(0.0005 + 0.0006 * turn), iommufd.alloc_ioas() as ioas, iommufd.bind(file) as device:
                device.attach(ioas)
                ioas.map(buffer, iova=IOVA)
                device.region(0).map().read32(0)
                device.detach()
        except Interrupt:
            interrupted += 1
        file.close()
        for left in iommufd.objects:
            left.close()
        assert check.leaks() == [], f"turn {turn}"
        buffer.resize(PAGE)  # which would raise where it were still mapped
    assert interrupted > 10
    iommufd.bind(first).close()


# Forks


def crash() -> None:
    faulthandler.disable()  # pytest's, whose report of eight children is of no use
    os.abort()


def leave() -> None:
    os._exit(3)


def end_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", ["close", "exit", "abort", "kill"])
def test_children_do_not_disturb_the_parents_dma(
    iommufd: IOMMUFD,
    device: Device,
    edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    end: str,
) -> None:
    device.attach(ioas)
    assert arrives(edu, buffer)
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                if end == "close":
                    mapping_closed = False
                    try:
                        mapping.unmap()
                    except Exception:
                        mapping_closed = True
                    for one in (edu, ioas, device, iommufd):
                        one.close()
                    os._exit(0 if mapping_closed else 1)
                elif end == "abort":
                    crash()
                elif end == "kill":
                    end_by_signal()
                leave()
            finally:
                os._exit(99)
        children.append(child)
    assert arrives(edu, buffer)
    codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
    assert codes == {{"close": 0, "exit": 3, "abort": -signal.SIGABRT, "kill": -signal.SIGKILL}[end]}
    assert arrives(edu, buffer)
    assert device.page_table is ioas
    assert ioas.unmap_all() == mapping.length
    assert not arrives(edu, buffer)
    ioas.map(buffer, iova=IOVA)
    assert arrives(edu, buffer)


def test_child_that_lives_on_does_not_keep_the_device_when_it_has_closed(
    claimed: Claim, first: HostDevice, peer: HostDevice
) -> None:
    with IOMMUFD() as iommufd:
        iommufd.bind(first)
        iommufd.bind(peer)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                iommufd.close()
                os.write(writer, b"x")
                signal.pause()
            finally:
                os._exit(1)
        try:
            assert os.read(reader, 1) == b"x"
            iommufd.close()
            with IOMMUFD() as other:
                other.bind(first).close()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            os.close(writer)


# Threads


def test_eight_threads_map_while_another_attaches_and_replaces(
    device: Device,
    peer_device: Device,
    iommufd: IOMMUFD,
    ioas: IOAS,
    edu: EduDriver,
    arrives: Arrives,
) -> None:
    other = iommufd.alloc_ioas()
    tables = (ioas, other)
    failures: list[str] = []
    end = time.monotonic() + 4
    turns = [0] * 9

    def work(number: int) -> None:
        try:
            buffer = DMABuffer(8 * PAGE)
            base = (16 + number) * 16 * IOVA
            kept: list[tuple[DMAMapping, int]] = []
            while time.monotonic() < end or turns[number] < 10:
                table = tables[turns[number] % 2]
                here = [table.map(buffer, iova=base + at * 8 * PAGE) for at in range(4)]
                many = table.map_many(buffer, [(at * PAGE, PAGE, base + IOVA + 2 * at * PAGE) for at in range(8)])
                chosen = table.map(buffer, below=1 << 28)
                made: list[DMAMapping | DMAMappings] = [*here, many, chosen]
                for one in made:
                    assert one.mapped
                    one.unmap()
                    assert not one.mapped
                turns[number] += 1
            kept.append((ioas.map(buffer, iova=base), base))
            assert kept[0][0].iova == base
        except BaseException as error:
            failures.append(f"{number}: {error!r}")

    def attach() -> None:
        try:
            while time.monotonic() < end or turns[8] < 10:
                device.attach(ioas)
                peer_device.attach(ioas)
                device.replace(other)
                assert peer_device.page_table is other
                peer_device.detach()
                device.replace(ioas)
                device.detach()
                turns[8] += 1
        except BaseException as error:
            failures.append(f"attach: {error!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    threads.append(threading.Thread(target=attach))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(turns) >= 10, turns
    assert len(ioas.mappings) == 8
    assert other.mappings == ()
    assert other.unmap_all() == 0
    assert ioas.unmap_all() == 8 * 8 * PAGE
    other.close()
    buffer = DMABuffer(PAGE)
    ioas.map(buffer, iova=IOVA)
    device.attach(ioas)
    assert arrives(edu, buffer)


def test_threads_that_close_at_the_same_time(claimed: Claim, first: HostDevice, peer: HostDevice) -> None:
    """Each of eight threads closes everything in an order of its own; once is what happens."""
    for _ in range(8):
        with LeakCheck():
            iommufd = IOMMUFD()
            devices = [iommufd.bind(first), iommufd.bind(peer)]
            ioas = iommufd.alloc_ioas()
            devices[0].attach(ioas)
            buffer = DMABuffer(PAGE)
            mapping = ioas.map(buffer, iova=IOVA)
            window = devices[0].region(0).map()
            closes: list[Callable[[], None]] = [window.close, *(d.close for d in devices), iommufd.close, mapping.unmap]
            failures: list[BaseException] = []
            barrier = threading.Barrier(8)

            def run(
                number: int,
                closes: list[Callable[[], None]] = closes,
                failures: list[BaseException] = failures,
                barrier: threading.Barrier = barrier,
            ) -> None:
                barrier.wait()
                for at in range(len(closes)):
                    try:
                        closes[(at + number) % len(closes)]()
                    except BaseException as error:
                        failures.append(error)

            threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert failures == []
            assert iommufd.closed
            buffer.close()


# Sharing


def test_shared_iommufd_says_unknown_of_what_it_cannot_see(device: Device, peer: HostDevice, iommufd: IOMMUFD) -> None:
    """The other holder is this process, by an object that knows nothing of the first."""
    ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    with IOMMUFD.from_fd(os.dup(iommufd.fileno())) as shared:
        assert shared.shared
        assert shared.objects == ()
        bound = shared.bind(peer)
        # Not the group's first bind, which cannot be known: so it does not say that it was.
        assert bound.bind_change.devices == ()
        mine = shared.alloc_ioas()
        assert mine.id != ioas.id
        preview = bound.preview_attach(mine)
        assert preview.verdict is Verdict.UNKNOWN
        assert any("shared" in reason for reason in preview.reasons)
        # What is behind it: the kernel refuses, for an attachment that this object does not have.
        with pytest.raises(IoctlError) as caught:
            bound.attach(mine)
        assert caught.value.errno == errno.EINVAL
        device.detach()
        bound.attach(mine)
        # And the other way round: what somebody destroys under it is an error with its name.
        victim = iommufd.alloc_ioas()
        mapping = victim.map(DMABuffer(PAGE), iova=IOVA)
        destroy_unseen(shared, victim.id)
        with pytest.raises(NotFoundError):
            victim.map(DMABuffer(PAGE), iova=2 * IOVA)
        mapping.unmap()
        assert not mapping.mapped
        with pytest.raises(NotFoundError):
            victim.close()
        victim.mark_closed()
        with pytest.raises(BusyError):
            destroy_unseen(iommufd, mine.id)


def destroy_unseen(iommufd: IOMMUFD, object_id: int) -> None:
    """IOMMU_DESTROY behind the objects' back, as another process that has the fd could."""
    ioctls.destroy(iommufd.fileno(), object_id)
