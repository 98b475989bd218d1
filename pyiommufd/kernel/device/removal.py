"""Closes a device when the host requests its removal (VFIO_PCI_REQ_IRQ_INDEX)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyiommufd.closing import Closing
from pyiommufd.errors import ClosedError, InUseError
from pyiommufd.kernel.interrupts.interrupt import Interrupt

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device


class RemovalWatch(Closing):
    """A watch for the host's request to remove a device. Made by `Device.watch_removal`.

    A context manager that ends the watch; so does closing the device.

    Thread safety: everything here may be used from any thread, the callback's among them.

    Attributes:
        callback: What is called before the device is closed, or None.
    """

    __slots__ = ("_waiter", "callback")

    def __init__(self, waiter: RemovalWaiter, callback: Callable[[Device], object] | None) -> None:
        self._waiter = waiter
        self.callback = callback

    def close(self) -> None:
        """End the watch; does not wait for a running callback. Does nothing the second time."""
        self._waiter.remove(self)

    def __repr__(self) -> str:
        state = f"calls {self.callback!r}" if self.callback is not None else "closes it"
        if not self._waiter.is_active(self):
            state = "ended"
        return f"<RemovalWatch of {self._waiter.device.name}: {state}>"


class RemovalWaiter:
    """The thread that waits for the host's removal request, on behalf of all watches of a device.

    It has no lock of its own: what it holds changes under the lock of the device's interrupts.
    """

    __slots__ = ("_all_called", "_request", "_watches", "device")

    def __init__(self, device: Device) -> None:
        self.device = device
        self._watches: tuple[RemovalWatch, ...] = ()
        self._request: Interrupt | None = None
        self._all_called = False

    @property
    def is_idle(self) -> bool:
        """Whether the thread is not waiting: not started yet, or ended."""
        return self._request is None or self._request.closed

    def is_active(self, watch: RemovalWatch) -> bool:
        """Whether the watch has not ended."""
        return watch in self._watches and not self.is_idle

    def add(self, callback: Callable[[Device], object] | None) -> RemovalWatch:
        """Add a watch; the first one starts the thread. The lock is held."""
        if self._all_called:
            raise ClosedError(f"{self.device!r} is about to be closed: the host wants it back")
        watch = RemovalWatch(self, callback)
        try:
            self._watches = (*self._watches, watch)
            if self.is_idle:
                self._start()
        except BaseException:
            self.remove(watch)
            raise
        return watch

    def _start(self) -> None:
        req = self.device.interrupts.req
        if req.enabled:
            raise InUseError(f"{req!r} is on for another use", req.vectors)
        try:
            (self._request,) = req.enable()
            # A daemon thread, so that it does not keep the program from exiting.
            name = f"pyiommufd-removal-{self.device.name}"
            threading.Thread(target=self._run, args=[self._request], name=name, daemon=True).start()
        except InUseError:
            raise  # a signal handler has turned it on, for a use of its own
        except BaseException:
            # Also if it was enabled but not stored here yet.
            req.disable()
            raise

    def remove(self, watch: RemovalWatch) -> None:
        """Remove a watch; removing the last one ends the thread."""
        if self.device.in_child:
            return
        with self.device.interrupts._lock:
            self._watches = tuple(one for one in self._watches if one is not watch)
            if not self._watches and self._request is not None:
                self._request.close()

    def _run(self, request: Interrupt) -> None:
        while True:
            try:
                request.wait()
            except ClosedError:
                return
            if self._watches:  # the last one may end at the same moment
                break
        try:
            self._call_watches(())
        finally:
            self.device.close()

    def _call_watches(self, called: tuple[RemovalWatch, ...]) -> None:
        """Call every callback, whatever the others raise: latest first; watches added meanwhile are called last."""
        with self.device.interrupts._lock:
            watches = [watch for watch in self._watches if watch not in called]
            self._all_called = not watches
        if watches:
            try:
                with contextlib.ExitStack() as stack:
                    for watch in watches:
                        if watch.callback is not None:
                            stack.callback(watch.callback, self.device)
            finally:
                self._call_watches((*called, *watches))
