"""Reports the host's removal requests for devices that another process uses, and waits for their release."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterable

from pyiommufd.closing import Closing
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.monitor import DeviceEvent, Monitor
from pyiommufd.host.holders import holders


class RemovalNotices(Closing):
    """Reports when the host takes away devices that another process uses. A context manager that stops watching.

    When a device leaves its vfio driver, by hot-unplug or by an unbind, the kernel removes its node, sends REQ to the
    process that has it open, which has to close it, and waits. This class watches the nodes.

    Args:
        devices: The devices, on their vfio drivers.
        tell: Called with a message, from this object's thread.
        given_to: The process that uses them, in words, for the message when it has released the device already.
    """

    def __init__(self, devices: Iterable[HostDevice], tell: Callable[[str], object], given_to: str) -> None:
        self._devices = {device.sys_path: device for device in devices}
        self._tell = tell
        self._given_to = given_to
        self._leaving: set[HostDevice] = set()
        self._changed = threading.Condition()
        self._monitor = Monitor(["vfio-dev", *{device.subsystem for device in self._devices.values()}])
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, name="pyiommufd-removals", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._monitor.fileno(), self._stop], [], [])
            if self._stop in ready:
                return
            event = self._monitor.poll(0)
            if event is not None:
                self._handle(event)

    def _handle(self, event: DeviceEvent) -> None:
        if event.subsystem == "vfio-dev":
            # …/0000:02:01.0/vfio-dev/vfio0
            device = self._devices.get(event.sys_path.parent.parent)
            if device is not None and event.action == "remove":
                self._note(device, leaving=True)
                held = "; ".join(map(str, holders(device))) or f"{self._given_to} has released it already"
                self._tell(
                    f"the host takes {device.name} from its vfio driver, and the kernel asks for its release: {held}"
                )
            return
        device = self._devices.get(event.sys_path)
        if device is not None and event.action in ("remove", "unbind"):
            self._tell(f"{device.name} {'is gone' if event.action == 'remove' else 'has left its vfio driver'}")
            self._note(device, leaving=False)

    def _note(self, device: HostDevice, *, leaving: bool) -> None:
        with self._changed:
            (self._leaving.add if leaving else self._leaving.discard)(device)
            self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until the devices that are being removed have left their vfio drivers.

        Called before devices are restored, so that none is examined in the middle of its removal.

        Args:
            seconds: How long to wait.

        Returns:
            Whether they have.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._leaving, seconds)

    def close(self) -> None:
        """Stop watching. Does nothing the second time."""
        if not self._monitor.closed:
            os.write(self._stopped, b".")
            self._thread.join()
            self._monitor.close()
            os.close(self._stop)
            os.close(self._stopped)
