"""Changes of the host's devices, as they happen."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyiommufd.closing import Closing
from pyiommufd.errors import ClosedError, DeviceNotFoundError
from pyiommufd.host.discovery.devices import HostDevice, from_sys_path, udev_context
from pyiommufd.host.discovery.lookup import SUBSYSTEMS
from pyiommufd.iterables import iterate
from pyiommufd.printable import OneLine

# Written by udevd as long as it runs; without it, as in a small guest, only the kernel's own events come.
_UDEV_CONTROL = Path("/run/udev/control")
_LONGEST = 2_000_000.0  # seconds; poll(2) counts milliseconds in 32 bits


@dataclass(frozen=True, slots=True, repr=False)
class DeviceEvent(OneLine):
    """Something that happened to a device.

    Attributes:
        action: ``add`` and ``remove`` of the device; ``bind`` and ``unbind`` of its driver; ``change`` …
        subsystem: The bus of the device, or ``vfio-dev`` where its vfio node came or went.
        name: Its name there, such as ``0000:02:01.0`` or ``vfio0``.
        sys_path: Its folder.
        device: The device as it is now; of a vfio node, the device behind it. None where it is gone.
    """

    action: str
    subsystem: str
    name: str
    sys_path: Path
    device: HostDevice | None

    def _line(self) -> str:
        of = f", of {self.device.name}" if self.device is not None and self.device.name != self.name else ""
        return f"{self.action} {self.subsystem} {self.name}{of}"


class Monitor(Closing):
    """Watches devices come, go and change drivers (udev's events; the kernel's where no udevd runs).

    A context manager, an iterator that waits for the next event, and an async one. Events from its creation on
    are kept until they are read.

    Thread safety: one thread reads; `close` may be called from any.

    Args:
        subsystems: The buses to watch; ``vfio-dev`` for vfio nodes. All that `list_devices` knows, and these, when
            left out.

    Raises:
        ValueError: None of a bus's devices can have a vfio driver.
        MissingLibraryError: There is no libudev.
    """

    def __init__(self, subsystems: Collection[str] | None = None) -> None:
        known = (*SUBSYSTEMS, "vfio-dev")
        wanted = known if subsystems is None else tuple(iterate(subsystems, "subsystems are names"))
        for subsystem in wanted:
            if subsystem not in known:
                raise ValueError(f"subsystem {subsystem!r} is none of {', '.join(known)}")
        context = udev_context()
        import pyudev

        source = "udev" if _UDEV_CONTROL.exists() else "kernel"
        monitor = pyudev.Monitor.from_netlink(context, source=source)
        for subsystem in wanted:
            monitor.filter_by(subsystem)
        monitor.start()
        self._monitor: Any = monitor
        self._subsystems = wanted

    def _live(self) -> Any:
        if self._monitor is None:
            raise ClosedError("this Monitor is closed")
        return self._monitor

    def fileno(self) -> int:
        """A file descriptor that is readable when there is an event."""
        return int(self._live().fileno())

    def poll(self, seconds: float | None = None) -> DeviceEvent | None:
        """The next event, or None where none came in time.

        Args:
            seconds: How long to wait; None: until one comes.

        Raises:
            ClosedError: The monitor is closed.
            ValueError: The time is negative, or no number.
            TypeError: It is no number.
        """
        monitor = self._live()
        if seconds is not None:
            if not seconds >= 0:
                raise ValueError(f"seconds to wait are 0 or more, not {seconds}")
            seconds = float(min(seconds, _LONGEST))
        deadline = None if seconds is None else time.monotonic() + seconds
        while (entry := monitor.poll(seconds)) is None:
            # Also None, before the time is over: a message that libudev drops, such as one that is not the kernel's.
            if deadline is not None and (seconds := deadline - time.monotonic()) <= 0:
                return None
        return _event(entry)

    def __iter__(self) -> Iterator[DeviceEvent]:
        while self._monitor is not None:
            event = self.poll()
            if event is not None:
                yield event

    async def __aiter__(self) -> AsyncIterator[DeviceEvent]:
        import asyncio  # here, so that `import pyiommufd` does not pay for it

        loop = asyncio.get_running_loop()
        while self._monitor is not None:
            event = self.poll(0)
            if event is not None:
                yield event
                continue
            readable = asyncio.Event()
            fd = self.fileno()
            loop.add_reader(fd, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(fd)

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._monitor is None

    def close(self) -> None:
        """Stop watching. Does nothing the second time."""
        # libudev closes the socket when its object goes.
        self._monitor = None

    def __repr__(self) -> str:
        return f"<Monitor of {', '.join(self._subsystems)}{' closed' if self.closed else ''}>"


def _event(entry: Any) -> DeviceEvent:
    path = Path(entry.sys_path)
    # The device behind a node: …/0000:02:01.0/vfio-dev/vfio0
    of = path.parent.parent if entry.subsystem == "vfio-dev" else path
    try:
        device = from_sys_path(of)
    except DeviceNotFoundError:
        device = None
    return DeviceEvent(entry.action, entry.subsystem, entry.sys_name, path, device)
