"""Letting a device go when the host wants it back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ClosedError
from .closing import Closing

if TYPE_CHECKING:
    from .device import Device


class RemovalWatch(Closing):
    """What is to be done when the host wants a device back. Made by `Device.watch_removal`.

    A context manager that ends the watch; so does closing the device.
    """

    __slots__ = ("_waiter", "callback")

    def __init__(self, waiter: RemovalWaiter, callback: Callable[[Device], object] | None) -> None:
        self._waiter = waiter
        self.callback = callback

    def close(self) -> None:
        """Watch no more. A callback that runs is not waited for. Does nothing the second time."""
        self._waiter.remove(self)


class RemovalWaiter:
    """The thread that waits for the host to want a device back, for all who watch for it."""

    __slots__ = ("_device", "_lock", "_request", "_watches")

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.RLock()
        self._watches: list[RemovalWatch] = []
        (self._request,) = device.interrupts.req.enable()
        try:
            # A daemon: a program that ends is not kept from it.
            threading.Thread(target=self._run, name=f"pyiommufd-removal-{device.name}", daemon=True).start()
        except BaseException:
            self._request.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether nothing is waited for any more."""
        return self._request.closed

    def add(self, callback: Callable[[Device], object] | None) -> RemovalWatch:
        """Watch as well."""
        watch = RemovalWatch(self, callback)
        with self._lock:
            self._watches.append(watch)
        return watch

    def remove(self, watch: RemovalWatch) -> None:
        """A watch ends; with the last one, the waiting does."""
        with self._lock:
            if watch in self._watches:
                self._watches.remove(watch)
            if not self._watches and not self.ended:
                self._request.close()

    def _run(self) -> None:
        try:
            self._request.wait()
        except ClosedError:
            return
        with self._lock:
            watches = list(self._watches)
        # Those who came last are told first; whatever they raise, the device is closed.
        with contextlib.ExitStack() as stack:
            stack.callback(self._device.close)
            for watch in watches:
                if watch.callback is not None:
                    stack.callback(watch.callback, self._device)
