"""Devices that come and go in a running `Guest`, and the record of what was done to their registers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyiommufd.testing import Edu, Guest, GuestError, GuestTimeoutError, Nvme, RawDevice, RootPort, SharedGroup
from tests.patience import patience, until

pytestmark = pytest.mark.boots

TOUCH = """\
import glob, mmap, os
for device in glob.glob("/sys/bus/pci/devices/*"):
    if open(device + "/device").read() == "0x11e8\\n":
        break
open(device + "/enable", "w").write("1")
registers = mmap.mmap(os.open(device + "/resource0", os.O_RDWR | os.O_SYNC), 4096)
memoryview(registers).cast("I")[1] = 0x1234
assert memoryview(registers).cast("I")[1] == 0x1234 ^ 0xffffffff
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(devices=[Edu(), RootPort(Edu(id="there")), RootPort()], trace=True) as guest:
        yield guest


def _serials(guest: Guest) -> str:
    return guest.run(["sh", "-c", "cat /sys/class/nvme/*/serial"]).stdout.decode()


def _wait_for(guest: Guest, serial: str) -> None:
    until(lambda: serial in _serials(guest), f"the disk {serial} is there")


def test_device_comes_and_goes(guest: Guest) -> None:
    for serial in ("first", "second"):
        name = guest.hot_plug(Nvme(serial=serial, size=1 << 20))
        _wait_for(guest, serial)
        with pytest.raises(GuestError, match="no root port of the guest is empty"):
            guest.hot_plug(Edu())
        guest.unplug(name)
        assert _serials(guest) == ""


def test_refusals_name_what_was_refused(guest: Guest) -> None:
    with pytest.raises(GuestError, match="nowhere"):
        guest.unplug("nowhere")
    with pytest.raises(GuestError, match="nosuch"):
        guest.hot_plug(RawDevice("nosuch"))
    with pytest.raises(GuestError, match="without a bridge"):
        guest.hot_plug(SharedGroup(Edu()))


def test_monitor_answers_several_threads(guest: Guest) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: guest.qmp("query-name"), range(100)))
    assert answers == [{}] * 100


def test_monitor_remembers_events(guest: Guest) -> None:
    assert guest.qmp("query-status")["running"] is True
    guest.qmp("stop")
    guest.qmp("cont")
    guest.monitor.wait_event("RESUME", patience())
    assert guest.monitor.events("STOP") == [{}]
    with pytest.raises(GuestTimeoutError, match="SHUTDOWN"):
        guest.monitor.wait_event("SHUTDOWN", 0.1)


def test_register_accesses_in_order(guest: Guest) -> None:
    guest.run(["python", "-c", TOUCH], check=True)
    accesses = [(a.kind, a.offset, a.size, a.value) for a in guest.register_accesses("edu-mmio")]
    assert accesses[-2:] == [("write", 4, 4, 0x1234), ("read", 4, 4, 0x1234 ^ 0xFFFF_FFFF)]


def test_no_record_unless_asked_for() -> None:
    with pytest.raises(GuestError, match="trace=True"):
        Guest(devices=[]).register_accesses()
