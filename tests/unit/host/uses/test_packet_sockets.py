"""Packet sockets and AF_XDP sockets, as a kernel lists them that no guest is."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from pyiommufd.host.uses import netlink
from pyiommufd.host.uses.packet_sockets import packet_sockets
from pyiommufd.host.uses.processes import look_at_processes
from tests.fake_sysfs import FakeSysfs
from tests.unit.host.uses.host import Host

# Linux 7.3, packet_seq_show in net/packet/af_packet.c and proto_seq_printf in net/core/sock.c.
PACKET = """\
sk               RefCnt Type Proto  Iface R Rmem   User   Inode
00000000a1b2c3d4 3      3    0003   2     1 0      0      4711
00000000a1b2c3d5 3      2    888e   0     1 0      0      4712
00000000a1b2c3d6 3      10   88cc   2     1 0      1000   4713
00000000a1b2c3d7 3      3    0003   -1    0 0      0      4714
"""
PROTOCOLS = """\
protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em
PACKET    1472      4      -1   NI       0   no   kernel      n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n
XDP       1024 {:>6}      -1   NI       0   no   kernel      n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n
"""


@pytest.fixture
def net(fake: FakeSysfs) -> Path:
    folder = fake.proc / "net"
    folder.mkdir()
    return folder


def test_kernel_without_packet_sockets(net: Path) -> None:
    found = packet_sockets()
    assert (found.packet, found.xdp, found.unlisted) == ({}, {}, 0)


def test_packet_sockets_of_an_interface(net: Path) -> None:
    """One without an interface has all, which is no use of one card; of another the interface is gone."""
    (net / "packet").write_text(PACKET)
    assert packet_sockets().packet.get(2) == [4711, 4713]


@pytest.mark.parametrize("lists", [True, False])
def test_xdp_sockets(net: Path, monkeypatch: pytest.MonkeyPatch, lists: bool) -> None:
    """What the kernel does not list is counted; without CONFIG_XDP_SOCKETS_DIAG that is each of them."""

    def messages(request: int, body: bytes, protocol: int) -> list[bytes]:
        assert (request, body[0], protocol) == (20, 44, 4)
        if not lists:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        # Of the second the interface is 0: it is not bound.
        found = ((4711, 2), (4712, 0))
        return [struct.pack("=BBHIIIHHII", 44, 3, 0, inode, 0, 0, 12, 1, index, 0) for inode, index in found]

    monkeypatch.setattr(netlink, "messages", messages)
    (net / "protocols").write_text(PROTOCOLS.format(3))
    found = packet_sockets()
    assert found.xdp.get(2) == ([4711] if lists else None)
    assert found.unlisted == (1 if lists else 3)


def test_xdp_is_not_asked_for_without_such_sockets(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(netlink, "messages")
    (net / "protocols").write_text(PROTOCOLS.format(0))
    assert packet_sockets().unlisted == 0


def test_holders(host: Host, net: Path) -> None:
    host.process(70, "lldpd", holds="socket:[4711]")
    host.process(9, "dhclient", holds="socket:[4713]")
    host.process(71, "other", holds="socket:[47111]")
    found = look_at_processes(mappings=False)
    assert found.sockets == {4711: 70, 4713: 9, 47111: 71}
    assert found.words(9) == "pid 9 (dhclient)"
