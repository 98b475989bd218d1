"""fds to other processes: sent, received, inherited; and used by one that may do nothing else."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from pyiommufd import IOMMUFD, Claim, ClosedError, DeviceFile, HandoverError, HostDevice, IoctlError, plan_claim
from pyiommufd.vmm import VMM, Handover, hostdev_xml
from tests.guest.types import DriverState
from tests.guest.vmm.conftest import STANDIN, holders_of_anything

MEMLOCK = 8 << 20

# Everything that the unprivileged side does; it has a socket and nothing else.
UNPRIVILEGED = f"""
import os, socket, sys
sys.path.insert(0, {str(STANDIN.parent)!r})
from standin import dma, whoami
from pyiommufd import DMABuffer, IoctlError
from pyiommufd.vmm import Handover

whoami()
for path in ("/dev/iommu", "/dev/vfio/devices"):
    print(path, os.path.exists(path), flush=True)
with socket.socket(fileno=int(sys.argv[1])) as channel:
    handover = Handover.receive(channel)
with handover:
    device = handover.iommufd.bind(handover.devices[0])
    print("dma", dma(handover.iommufd, device), flush=True)
    ioas = device.page_table
    with ioas.map(DMABuffer(4 << 20), iova=0x400000) as mapping:
        print("mapped", mapping.length, flush=True)
    try:
        ioas.map(DMABuffer(16 << 20), iova=0x1000000)
    except IoctlError as error:
        print("refused", error.errno, error.causes[0], flush=True)
"""


@pytest.fixture
def claim(alone: HostDevice, as_before: DriverState) -> Iterator[Claim]:
    with plan_claim(alone).apply() as claim:
        yield claim


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.long
def test_process_that_may_nothing(
    claim: Claim, alone: HostDevice, pair: tuple[socket.socket, socket.socket], python_for_all: None
) -> None:
    """As nobody, without capabilities, 8 MiB of locked memory, and in a namespace without any of the nodes."""
    ours, theirs = pair
    prepare = f'mount -t tmpfs none /dev && ulimit -l {MEMLOCK >> 10} && exec "$@"'
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    code = [sys.executable, "-c", UNPRIVILEGED, str(theirs.fileno())]
    command = ["unshare", "--mount", "bash", "-c", prepare, "bash", *drop, *code]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True) as process:
        theirs.close()
        with ours:
            Handover.open(alone).send(ours)
        output, _ = process.communicate()
    assert process.returncode == 0
    lines = output.splitlines()
    assert lines[:2] == ["user 65534 65534 65534", "capabilities 0 0 0 0"]
    assert lines[3:8] == [
        f"memlock {MEMLOCK} {MEMLOCK}",
        "/dev/iommu False",
        "/dev/vfio/devices False",
        "dma moved",
        f"mapped {4 << 20}",
    ]
    assert lines[8].startswith("refused 12 the memory could not be pinned: it is over the limit on locked memory")
    assert f"limited to {MEMLOCK:#x} bytes" in lines[8]
    assert "ulimit -l" in lines[8]


def test_sent_and_received(claim: Claim, alone: HostDevice, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    sent = Handover.open(alone)
    assert alone.name in repr(sent)
    sent.send(ours)
    assert "closed" in repr(sent)
    with pytest.raises(ClosedError):
        sent.send(ours)
    with Handover.receive(theirs) as received:
        assert [device.name for device in received.devices] == [alone.name]
        assert not any(map(os.get_inheritable, received.fds))
        assert received.iommufd.shared
        received.iommufd.bind(received.devices[0])


def test_any_program_may_send_in_any_order(
    claim: Claim, alone: HostDevice, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    with IOMMUFD() as iommufd, DeviceFile(alone) as file:
        socket.send_fds(ours, [b"x"], [file.fileno(), iommufd.fileno()])
    with Handover.receive(theirs) as received:
        assert received.iommufd.bind(received.devices[0]).name == alone.name


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_what_is_no_device_is_refused_and_closed(
    claim: Claim, alone: HostDevice, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    gc.collect()
    before = open_fds()
    with open("/dev/null", "rb") as file, IOMMUFD() as iommufd, IOMMUFD() as second, DeviceFile(alone) as device:
        for fds in (
            [iommufd.fileno(), file.fileno(), device.fileno()],
            [iommufd.fileno()],
            [device.fileno()],
            [iommufd.fileno(), second.fileno(), device.fileno()],
        ):
            socket.send_fds(ours, [b"x"], fds)
            with pytest.raises(HandoverError, match="cannot be used"):
                Handover.receive(theirs)
        ours.send(b"x")
        with pytest.raises(HandoverError, match="0 iommufds and 0 devices"):
            Handover.receive(theirs)
    ours.close()
    with pytest.raises(HandoverError, match="has closed the socket"):
        Handover.receive(theirs)
    assert open_fds() | {str(ours.fileno())} >= open_fds()
    assert len(open_fds()) == len(before) - 1  # the socket's end


def test_time_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        Handover.receive(pair[1])


def test_failed_sending_leaves_them_open(
    claim: Claim, alone: HostDevice, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.close()
    with Handover.open(alone) as handover:
        with pytest.raises(OSError, match="Broken pipe"):
            handover.send(ours)
        assert handover.iommufd.bind(handover.devices[0]).name == alone.name


def test_inherited_once(claim: Claim, alone: HostDevice) -> None:
    with Handover.open(alone) as handover:
        copies = [os.dup(fd) for fd in handover.fds]
    environment = {"PYIOMMUFD_FDS": " ".join(map(str, copies))}
    with Handover.inherited(environment) as mine:
        assert mine.fds == tuple(copies)
        assert environment == {}
        told_again = {"PYIOMMUFD_FDS": " ".join(map(str, copies))}
        for again in (environment, {"PYIOMMUFD_FDS": "x"}, {"PYIOMMUFD_FDS": "999"}, told_again):
            with pytest.raises(HandoverError, match="PYIOMMUFD_FDS"):
                Handover.inherited(again)
        assert mine.iommufd.bind(mine.devices[0]).name == alone.name  # they are the first one's still


def test_what_somebody_holds_is_not_opened(claim: Claim, alone: HostDevice) -> None:
    with DeviceFile(alone) as file, pytest.raises(HandoverError, match=f"by fd {file.fileno()}"):
        Handover.open([alone])
    with pytest.raises(ValueError, match="no device"):
        Handover.open([])


def test_failed_opening_leaves_nothing_open(claim: Claim, alone: HostDevice, peer: HostDevice) -> None:
    with pytest.raises(IoctlError, match="plan_claim"):
        Handover.open([alone, peer])


def test_monitor_from_python(claim: Claim, alone: HostDevice) -> None:
    with Handover.open(alone) as handover:
        vmm = VMM([sys.executable, str(STANDIN), "fds", "wait"], handover)
    assert handover.iommufd.closed
    with vmm:
        assert str(vmm.pid) in repr(vmm)
        with pytest.raises(TimeoutError, match=f"pid {vmm.pid}"):
            vmm.wait(0.01)
        assert [held for held in holders_of_anything() if f"/proc/{vmm.pid}/" in held and "/dev/vfio" in held]
    # SIGTERM has ended it, by itself or by the signal's own action, if it had not got so far.
    assert vmm.poll() in (115, -15)


@pytest.mark.long
def test_monitor_that_cannot_be_started(claim: Claim, alone: HostDevice) -> None:
    before = open_fds()
    with Handover.open(alone) as handover, pytest.raises(HandoverError, match="nowhere: No such file"):
        VMM(["/nowhere"], handover)
    with Handover.open(alone) as handover, pytest.raises(HandoverError, match="no user 'nobody-at-all'"):
        VMM(["true"], handover, user="nobody-at-all")
    for memlock, kind in ((-2, ValueError), (1 << 63, ValueError), (True, TypeError), ("8", TypeError)):
        with Handover.open(alone) as handover:
            with pytest.raises(kind, match="a limit on locked memory"):
                VMM(["true"], handover, memlock=memlock)  # type: ignore[arg-type]
            assert handover.fds  # nothing has been started, and they are still here
    assert open_fds() == before


# As libvirt's formatdomain has it: attribute names and values of a hostdev for PCI, and of what is in it.
DOMAIN = """
import re, sys, xml.etree.ElementTree as ElementTree
from pyiommufd import IOMMUFD, DeviceFile
from pyiommufd.host.holders import holders

domain = ElementTree.parse(sys.stdin).getroot()
(hostdev,) = domain.findall("./devices/hostdev")
assert hostdev.attrib == {"mode": "subsystem", "type": "pci", "managed": "no"}
assert sorted(child.tag for child in hostdev) == ["driver", "source"]
assert hostdev.find("driver").attrib == {"name": "vfio", "iommufd": "yes"}
(address,) = hostdev.find("source")
assert sorted(address.attrib) == ["bus", "domain", "function", "slot"]
numbers = [int(address.get(key), 16) for key in ("domain", "bus", "slot", "function")]
with IOMMUFD() as iommufd:
    print(iommufd.bind("%04x:%02x:%02x.%x" % tuple(numbers)).name)
"""


@pytest.mark.long
def test_xml_for_libvirt(claim: Claim, alone: HostDevice) -> None:
    domain = f"<domain><devices>{hostdev_xml(alone)}</devices></domain>"
    done = subprocess.run(
        [sys.executable, "-c", DOMAIN], input=domain, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stdout == f"{alone.name}\n", done.stderr


def test_type_of_open_fds(claim: Claim, alone: HostDevice, kernel_fds: Callable[[], dict[int, str]]) -> None:
    with Handover.open(alone) as handover:
        assert sorted(kernel_fds()) == sorted(handover.fds)
    assert kernel_fds() == {}
