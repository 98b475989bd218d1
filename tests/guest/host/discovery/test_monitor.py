"""Events of devices that change drivers and go."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from pyiommufd import ClosedError, DeviceEvent, HostDevice, Monitor
from pyiommufd.host import drivers
from tests.patience import patience

UEVENTS = 15  # NETLINK_KOBJECT_UEVENT
KERNEL_GROUP = 1


def test_driver_change_is_seen(alone: HostDevice) -> None:
    with Monitor(["pci", "vfio-dev"]) as monitor:
        drivers.set_driver_override(alone, "vfio-pci")
        drivers.bind(alone, "vfio-pci")
        events: list[DeviceEvent] = []
        while not events or events[-1].action != "bind":
            event = monitor.poll(patience())
            assert event is not None
            events.append(event)
        assert {(event.subsystem, event.action) for event in events} == {("vfio-dev", "add"), ("pci", "bind")}
        assert all(event.device == alone for event in events)
        drivers.unbind(alone)
        drivers.set_driver_override(alone, None)
        first = monitor.poll(patience())
        assert first is not None
        assert (first.subsystem, first.action) == ("vfio-dev", "remove")
    with pytest.raises(ClosedError):
        monitor.poll(0)


def test_message_of_another_sender_ends_no_wait() -> None:
    """libudev drops it, and has nothing to return then."""
    with Monitor(["pci"]) as monitor, socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, UEVENTS) as other:
        other.sendto(b"add@/devices/other\0ACTION=add\0SUBSYSTEM=pci\0", (0, KERNEL_GROUP))
        start = time.monotonic()
        assert monitor.poll(0.5) is None
        assert time.monotonic() - start >= 0.5


def test_nothing_happens() -> None:
    with Monitor(["mdev"]) as monitor:
        assert monitor.poll(0.1) is None
    with pytest.raises(ValueError, match="usb"):
        Monitor(["usb"])
    with pytest.raises(TypeError, match="names"):
        Monitor(memoryview(bytes(8)).cast("B", shape=[4, 2]))  # type: ignore[arg-type]


def test_device_that_goes_and_comes(alone: HostDevice) -> None:
    with Monitor(["pci"]) as monitor:

        async def of_alone() -> list[tuple[str, bool]]:
            seen: list[tuple[str, bool]] = []
            async for event in monitor:
                if event.name == alone.name and event.action in ("add", "remove"):
                    seen.append((event.action, event.device is None))
                    if event.action == "add":
                        break
                    Path("/sys/bus/pci/rescan").write_text("1")
            return seen

        (alone.sys_path / "remove").write_text("1")
        assert asyncio.run(asyncio.wait_for(of_alone(), patience())) == [("remove", True), ("add", False)]
