"""Who holds a device: by an fd, by a mapping, through its group's node."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import IOMMUFD, Claim, DeviceFile, HostDevice
from pyiommufd.host.holders import Holder, holders


@pytest.fixture(params=["fd", "mapping"])
def other(request: pytest.FixtureRequest, claimed: Claim, first: HostDevice) -> Iterator[tuple[str, int]]:
    """Another process that holds the device, and how."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            iommufd = IOMMUFD()
            device = iommufd.bind(first)
            window = device.region(0).map()
            if request.param == "mapping":
                os.close(device.fileno())
            os.write(writer, b"h")
            signal.pause()
            window.close()
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read(1) == b"h"
    yield request.param, child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_nobody(claimed: Claim, first: HostDevice, bridge: HostDevice) -> None:
    assert holders(first.refreshed()) == ()
    assert holders(bridge, first) == ()
    assert holders() == ()


def test_own_fd(claimed: Claim, first: HostDevice, peer: HostDevice) -> None:
    now = first.refreshed()
    with DeviceFile(first) as file:
        (holder,) = holders(now)
        assert holder == Holder(os.getpid(), holder.command, now.vfio_cdev or "", f"fd {file.fileno()}")
        assert holders(peer.refreshed()) == ()
        assert holders(peer.refreshed(), now) == (holder,)
        assert str(os.getpid()) in str(holder)


def test_another_process(other: tuple[str, int], first: HostDevice) -> None:
    how, pid = other
    found = [holder for holder in holders(first.refreshed()) if holder.pid == pid]
    assert [holder.how.split()[0] for holder in found] == (["fd", "mapping"] if how == "fd" else ["mapping"])
    assert {holder.command for holder in found} == {Path("/proc/self/comm").read_text().strip()}
    # And a bind says so.
    with IOMMUFD() as iommufd, pytest.raises(OSError, match=f"pid {pid}"):
        iommufd.bind(first)


def test_node_of_the_group(claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice) -> None:
    node = f"/dev/vfio/{first.group_id}"
    with open(node, "r+b", buffering=0) as file:
        # It stands for every member.
        for device in (first, peer):
            (holder,) = holders(device.refreshed())
            assert (holder.node, holder.how) == (node, f"fd {file.fileno()}")
        with pytest.raises(OSError, match=node) as caught:
            iommufd.bind(first)
        assert caught.value.errno == 16
    iommufd.bind(first)
